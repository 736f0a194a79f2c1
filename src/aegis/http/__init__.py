"""HTTP that upstreams can live with: a permit per wire request, meaning instead of status codes, no leaked secret."""

from aegis.http.breaker import BreakerPolicy
from aegis.http.client import HttpClient
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
from aegis.http.records import Attempt, HttpStats, Limit, Limiter, Renew
from aegis.http.retry import RetryPolicy

__all__ = [
    "Ambiguous",
    "Attempt",
    "BreakerPolicy",
    "Empty",
    "HttpClient",
    "HttpStats",
    "Limit",
    "Limiter",
    "Ok",
    "Profile",
    "Reauth",
    "Rejected",
    "Renew",
    "Request",
    "Response",
    "RetryPolicy",
    "Throttled",
    "Transient",
    "Verdict",
]
