"""What the client tells about itself: attempts, totals, and the seam to a rate limiter."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import msgspec

from aegis.http.profile import Request, Response


class Limit(Protocol):
    """What the client reads of a limit."""

    @property
    def name(self) -> str:
        """Its name, for messages."""
        ...

    @property
    def hold_max(self) -> float:
        """The longest pause, in seconds, that one answer may cause."""
        ...


LimitT = TypeVar("LimitT", bound=Limit)
_LimitT_contra = TypeVar("_LimitT_contra", bound=Limit, contravariant=True)


class Limiter(Protocol[_LimitT_contra]):
    """Where permits come from."""

    async def wait(self, limit: _LimitT_contra, key: str = "", cost: int = 1, timeout: float | None = None) -> float:
        """Return when a permit is due, with the seconds waited; raise `RateLimitTimeoutError` when none can be."""
        ...

    async def hold(self, limit: _LimitT_contra, seconds: float, key: str = "") -> None:
        """Pause the limit for everybody."""
        ...


#: Called at most once per call with the refused request and its answer; gives the headers to replace.
Renew: TypeAlias = Callable[[Request, Response], Awaitable[Mapping[str, str]]]


class Attempt(msgspec.Struct, frozen=True):
    """One request as it went; secrets masked."""

    number: int
    outcome: str
    status: int | None
    elapsed_s: float
    permit_wait_s: float
    body_bytes: int
    reason: str = ""
    started_s: float = 0.0  #: since the call began; the permit wait lies before it


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call as it ended, for those who `observe` a client; secrets masked."""

    method: str
    url: str
    upstream: str  #: host and port
    outcome: str
    attempts: tuple[Attempt, ...]
    elapsed_s: float
    error: str = ""  #: the name of the error's class, where one was raised
    number: int = 0  #: of the call within this process


#: Called with every call that ended, in the task that made it; what it raises is logged and goes no further.
Observe: TypeAlias = Callable[[CallRecord], None]

#: Upper bounds of `UpstreamStats.elapsed_counts`, seconds: those that OpenTelemetry's semantic conventions advise for
#: `http.client.request.duration` (opentelemetry.io/docs/specs/semconv/http/http-metrics, read 2026-11-24).
ELAPSED_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


@dataclass(frozen=True, slots=True)
class UpstreamStats:
    """Totals of one host. `outcomes` counts the requests that ended, `refusals` what kept others from being sent."""

    calls: int
    attempts: int  #: requests begun, those in flight included
    failures: int
    retries: int
    outcomes: Mapping[str, int]
    refusals: Mapping[str, int]  #: by circuit, limiter, deadline or budget
    permit_wait_s: float
    body_bytes: int
    elapsed_s: float
    elapsed_counts: tuple[int, ...]  #: requests by duration: at most each of `ELAPSED_BOUNDS_S`, and above the last
    in_flight: int
    circuit: str  #: closed, half-open or open
    circuit_opened: int  #: how often
    budget_tokens: float  #: of the retry budget that is most spent


@dataclass(frozen=True, slots=True)
class HttpStats:
    """Totals since the client was built, shared by all clients derived from it."""

    calls: int
    attempts: int
    retries: int
    failures: int
    throttled: int
    ambiguous: int
    circuit_refusals: int
    budget_refusals: int
    permit_wait_s: float
    body_bytes: int
    in_flight: int
    circuits: Mapping[str, str]
    upstreams: Mapping[str, UpstreamStats]
