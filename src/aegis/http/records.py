"""What the client tells about itself: attempts, totals, and the seam to a rate limiter."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

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


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request as it went; secrets masked."""

    number: int
    outcome: str
    status: int | None
    elapsed_s: float
    permit_wait_s: float
    body_bytes: int
    reason: str = ""


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
