"""
What one attempt came to, and what follows from it: pure decisions, no I/O.

Three inputs count: what the upstream means (the profile's verdict, else the status), whether the request began to
leave, and whether it may be repeated. Everything that nobody can know ends in `AmbiguousOutcomeError`.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Protocol

from msgspec import structs

from aegis.errors import (
    AmbiguousOutcomeError,
    BodyDecodeError,
    BodyTooLargeError,
    ClosedError,
    HttpConnectionError,
    HttpError,
    HttpTimeoutError,
    RejectedError,
    ThrottledError,
    TransientError,
    UnauthorizedError,
)
from aegis.http._wire import Failure
from aegis.http.profile import Ambiguous, Empty, Ok, Reauth, Rejected, Response, Throttled, Transient, Verdict


@dataclass(slots=True)
class Outcome:
    """What one attempt came to, and what to do about it."""

    name: str
    response: Response | None = None
    error: HttpError | None = None  #: raised if this is the last attempt; None returns the response
    retry: bool = False
    after_s: float | None = None
    throttled: bool = False
    failed: bool | None = False  #: for the breaker; None counts neither way
    reset: bool = False  #: the connection broke without an answer
    renew: bool = False
    hedges: int = 0  #: further requests that left beside this one
    moved_to: str | None = None  #: where a redirect points that shall be followed

    def stopped(self, by: str) -> Outcome:
        """The same outcome, marked: it stands because a further attempt was kept from being made."""
        if self.error is not None:
            self.error.stopped_by = by
        if self.response is not None:
            self.response = structs.replace(self.response, stopped_by=by)
        return self


@dataclass(frozen=True, slots=True)
class Stopped:
    """No attempt could be made, by the circuit, the limiter or the deadline; `error` is raised if it was the first."""

    by: str
    error: Exception


def ending_of(exc: BaseException) -> str:
    """The outcome of a call that ended by an exception which is none of the upstream's doing."""
    if isinstance(exc, ClosedError):
        return "closed"
    return "raised" if isinstance(exc, Exception) else "cancelled"


class MakeError(Protocol):
    """Builds an error of the call in progress, with what is known of it, secrets masked."""

    def __call__(
        self,
        kind: type[HttpError],
        detail: str,
        response: Response | None = None,
        code: str = "",
        retry_after: float | None = None,
    ) -> HttpError:
        """The error; nothing is raised."""
        ...


def failed(failure: Failure, error: MakeError, *, idempotent: bool) -> Outcome:
    """A request without a complete answer."""
    if failure.kind == "too_large":
        return Outcome("too_large", error=error(BodyTooLargeError, failure.reason))
    if failure.kind == "invalid":
        return Outcome("invalid", error=error(RejectedError, failure.reason), failed=None)
    if failure.left and not idempotent:
        reason = f"{failure.reason}; the request had left, so whether it was executed is unknown"
        blame = None if failure.kind == "closed" else True
        return Outcome("ambiguous", error=error(AmbiguousOutcomeError, reason), failed=blame, reset=failure.reset)
    kind = HttpTimeoutError if failure.kind == "timeout" else HttpConnectionError
    return Outcome(failure.kind, error=error(kind, failure.reason), retry=True, failed=True, reset=failure.reset)


def unreadable(exc: Exception, profile: str, response: Response, error: MakeError, *, idempotent: bool) -> Outcome:
    """A classifier that failed: named with the place, but without its words, which may hold the answer's."""
    place = ""
    for frame in traceback.extract_tb(exc.__traceback__)[-1:]:
        place = f" in {frame.filename.rpartition('/')[2]}:{frame.lineno}"
    reason = f"profile {profile!r} cannot read the answer: {type(exc).__name__}{place}"
    if idempotent:
        return Outcome("unreadable", response, error(BodyDecodeError, reason, response), failed=None)
    reason += "; whether the request was executed is unknown"
    return Outcome("ambiguous", response, error(AmbiguousOutcomeError, reason, response), failed=None)


def by_status(response: Response, *, idempotent: bool) -> Outcome:
    """Without a profile the final response is returned whatever its status."""
    if response.status == 429:
        return Outcome("throttled", response, None, idempotent, response.retry_after, throttled=True, failed=None)
    if response.status in {408, 500, 502, 503, 504}:
        return Outcome("transient", response, None, idempotent, response.retry_after, failed=True)
    return Outcome("ok", response)


def by_verdict(verdict: Verdict, response: Response, error: MakeError, *, idempotent: bool) -> Outcome:
    """With a profile it is what the upstream means that counts."""
    if isinstance(verdict, Ok | Empty):
        return Outcome("ok" if isinstance(verdict, Ok) else "empty", response)
    named = (response.retry_after, verdict.after_s if isinstance(verdict, Throttled) else None)
    after_s = max((seconds for seconds in named if seconds is not None), default=None)
    message = verdict.message or f"status {response.status}"

    def end(kind: type[HttpError]) -> HttpError:
        return error(kind, message, response, verdict.code, after_s)

    if isinstance(verdict, Throttled):
        retry = idempotent or not verdict.executed
        return Outcome("throttled", response, end(ThrottledError), retry, after_s, throttled=True, failed=None)
    if isinstance(verdict, Reauth):
        return Outcome("reauth", response, end(UnauthorizedError), renew=True)
    if isinstance(verdict, Rejected):
        return Outcome("rejected", response, end(RejectedError))
    if isinstance(verdict, Transient) and (idempotent or verdict.executed is False):
        return Outcome("transient", response, end(TransientError), True, after_s, failed=True)
    if isinstance(verdict, Ambiguous) and idempotent:
        return Outcome("transient", response, end(TransientError), True, after_s, failed=True)
    return Outcome("ambiguous", response, end(AmbiguousOutcomeError), failed=True)
