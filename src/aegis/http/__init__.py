"""HTTP that upstreams can live with: a permit per wire request, meaning instead of status codes, no leaked secret."""

from aegis.http._wire import legacy_rsa_context
from aegis.http.breaker import BreakerPolicy
from aegis.http.cassette import Cassette
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
from aegis.http.records import Attempt, CallRecord, HttpStats, Limit, Limiter, Observe, Renew, UpstreamStats
from aegis.http.retry import RetryPolicy
from aegis.http.stream import StreamedResponse

__all__ = [
    "Ambiguous",
    "Attempt",
    "BreakerPolicy",
    "CallRecord",
    "Cassette",
    "Empty",
    "HttpClient",
    "HttpStats",
    "Limit",
    "Limiter",
    "Observe",
    "Ok",
    "Profile",
    "Reauth",
    "Rejected",
    "Renew",
    "Request",
    "Response",
    "RetryPolicy",
    "StreamedResponse",
    "Throttled",
    "Transient",
    "UpstreamStats",
    "Verdict",
    "legacy_rsa_context",
]
