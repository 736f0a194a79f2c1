"""HTTP that upstreams can live with: a permit per wire request, meaning instead of status codes, no leaked secret."""

from aegis.http.profile import (
    Ambiguous,
    Empty,
    Ok,
    Profile,
    Reauth,
    Rejected,
    Request,
    Response,
    Throttled,
    Transient,
    Verdict,
)

__all__ = [
    "Ambiguous",
    "Empty",
    "Ok",
    "Profile",
    "Reauth",
    "Rejected",
    "Request",
    "Response",
    "Throttled",
    "Transient",
    "Verdict",
]
