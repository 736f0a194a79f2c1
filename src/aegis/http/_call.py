"""
One call: deadline, attempts, budget, breaker, permit, send, classify; in this order, outermost first.

The breaker stands before the permit (an open circuit burns none); the permit wait lies outside the attempt's timeout
but inside the deadline. Errors are built as values and raised outside every `except`, so that no driver exception,
whose text can hold a URL, hangs on them as context.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any

from multidict import CIMultiDict

from aegis.errors import (
    AegisError,
    AmbiguousOutcomeError,
    BodyTooLargeError,
    CircuitOpenError,
    HttpConnectionError,
    HttpError,
    HttpTimeoutError,
    RejectedError,
    ThrottledError,
    TransientError,
    UnauthorizedError,
)
from aegis.http._shared import Settings, Shared, Upstream
from aegis.http._wire import Answer, Failure, Wire, send
from aegis.http.profile import Ambiguous, Empty, Ok, Reauth, Rejected, Request, Response, Throttled, Transient, Verdict
from aegis.http.records import Attempt
from aegis.http.retry import parse_retry_after

logger = logging.getLogger("aegis.http")
logger.addHandler(logging.NullHandler())


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

    def stopped(self, by: str) -> Outcome:
        """The same outcome, marked: it stands because a further attempt was kept from being made."""
        if self.error is not None:
            self.error.stopped_by = by
        if self.response is not None:
            self.response = replace(self.response, stopped_by=by)
        return self


@dataclass(frozen=True, slots=True)
class Stopped:
    """No attempt could be made, by the circuit, the limiter or the deadline; `error` is raised if it was the first."""

    by: str
    error: AegisError


class Call:
    """One call in progress."""

    def __init__(self, shared: Shared, settings: Settings, request: Request, timeout_s: float) -> None:
        self.shared, self.settings, self.request = shared, settings, request
        self.upstream: Upstream = shared.upstream(request.url, settings)
        self.started = monotonic()
        self.deadline = self.started + timeout_s
        self.timeout_s = timeout_s
        self.url = settings.redactor.url(request.url)
        self.refused: list[Request] = []  #: earlier forms of the request, with credentials that were renewed since
        self.history: list[Attempt] = []
        self.renewed = False
        self.sent_at = 0.0

    async def run(self) -> Response:
        """Attempt until there is an answer to return or an error to raise."""
        self.shared.calls += 1
        self.shared.in_flight += 1
        try:
            outcome, error = await self._attempts()
        finally:
            self.shared.in_flight -= 1
        if error is not None:
            self.shared.failures += 1
            if isinstance(error, AmbiguousOutcomeError):
                self.shared.ambiguous += 1
            self._log_call(logging.ERROR, outcome, error)
            raise error
        assert outcome.response is not None
        if logger.isEnabledFor(logging.DEBUG):
            self._log_call(logging.DEBUG, outcome)
        return outcome.response

    async def _attempts(self) -> tuple[Outcome, AegisError | None]:
        last: Outcome | None = None
        number = 0
        while True:
            number += 1
            outcome = await self._attempt(number)
            if isinstance(outcome, Stopped):
                if last is None:
                    return Outcome(outcome.by), outcome.error
                return last.stopped(outcome.by), last.error
            last = outcome
            if outcome.renew and await self._renew(outcome):
                number -= 1
                continue
            delay_s = self._retry_in_s(outcome, number)
            if delay_s is None:
                return outcome, outcome.error
            self.shared.retries += 1
            self._log_attempt(logging.WARNING, f"http retry in {delay_s:.3f} s")
            await asyncio.sleep(delay_s)

    def _retry_in_s(self, outcome: Outcome, number: int) -> float | None:
        """When to try again; None when this outcome is the last. A delay beyond the deadline ends the call now."""
        policy = self.settings.retry
        if not outcome.retry or number >= policy.attempts:
            return None
        backoff = policy.throttle_backoff if outcome.throttled else policy.backoff
        delay_s = max(outcome.after_s or 0.0, backoff.delay_s(number))
        if delay_s >= self.deadline - monotonic():
            outcome.stopped("deadline")
            return None
        if not self.upstream.budget.spend(policy.throttle_cost if outcome.throttled else policy.transient_cost):
            self.shared.budget_refusals += 1
            outcome.stopped("budget")
            if outcome.error is not None:
                outcome.error.retry_budget_exhausted = True
            return None
        return delay_s

    async def _attempt(self, number: int) -> Outcome | Stopped:
        """One attempt; `Stopped` when it could not be made, and then nothing was sent."""
        breaker = self.upstream.breaker
        era, wait_s = breaker.enter(monotonic())
        if era < 0:
            self.shared.circuit_refusals += 1
            reason = f"the circuit of {self.upstream.host} is open; next probe in {wait_s:.1f} s; nothing was sent"
            return Stopped("circuit", self._error(CircuitOpenError, reason, retry_after=wait_s))
        failed, reset = None, False
        try:
            waited_s = await self._permit()
            if isinstance(waited_s, Stopped):
                return waited_s
            outcome = await self._send(number, waited_s, self.deadline - monotonic())
            failed, reset = outcome.failed, outcome.reset
        finally:
            breaker.leave(era, monotonic(), failed=failed, reset=reset)
        if failed is False:
            self.upstream.budget.refund(self.settings.retry.refund)
        if outcome.throttled:
            self.shared.throttled += 1
            await self._hold(outcome)
        return outcome

    async def _permit(self) -> float | Stopped:
        """Seconds waited for the permit. An error of the limiter (its refusal, its outage) stays as it is."""
        settings, began = self.settings, monotonic()
        error: AegisError | None = None
        if settings.limiter is not None:
            try:
                async with asyncio.timeout(max(0.0, self.deadline - began)):
                    await settings.limiter.wait(settings.limit, key=settings.limit_key, timeout=self.deadline - began)
            except AegisError as exc:
                error = exc
            except TimeoutError:
                pass  # the limiter overslept: the deadline below says so
        waited_s = monotonic() - began
        self.shared.permit_wait_s += waited_s
        if error is not None:
            return Stopped("limiter", error)
        if monotonic() >= self.deadline:
            reason = f"the total deadline of {self.timeout_s:.3f} s passed before an attempt began; nothing was sent"
            return Stopped("deadline", self._error(HttpTimeoutError, reason))
        return waited_s

    async def _send(self, number: int, waited_s: float, remaining_s: float) -> Outcome:
        settings, shared, wire = self.settings, self.shared, Wire()
        shared.attempts += 1
        began = self.sent_at = monotonic()
        answer = await send(
            shared.session(),
            self.request,
            wire,
            timeout_s=min(shared.config.attempt_timeout, remaining_s),
            body_bytes_max=shared.config.max_body,
            tls=shared.tls(settings),
        )
        now = monotonic()
        outcome = self._failed(answer, wire) if isinstance(answer, Failure) else self._answered(answer, now)
        size = len(answer.content) if isinstance(answer, Answer) else 0
        shared.body_bytes += size
        reason = outcome.error.detail if outcome.error is not None else ""
        self.history.append(Attempt(number, outcome.name, answer.status, now - began, waited_s, size, reason))
        if outcome.error is not None:
            outcome.error.attempts, outcome.error.history = len(self.history), tuple(self.history)
        if logger.isEnabledFor(logging.DEBUG):
            self._log_attempt(logging.DEBUG, "http attempt")
        return outcome

    def _failed(self, failure: Failure, wire: Wire) -> Outcome:
        """A request without a complete answer."""
        if failure.kind == "too_large":
            return Outcome("too_large", error=self._error(BodyTooLargeError, failure.reason))
        if failure.kind == "invalid":
            return Outcome("invalid", error=self._error(RejectedError, failure.reason), failed=None)
        if wire.sent and not self.request.idempotent:
            reason = f"{failure.reason}; the request had left, so whether it was executed is unknown"
            return Outcome(
                "ambiguous", error=self._error(AmbiguousOutcomeError, reason), failed=True, reset=failure.reset
            )
        kind = HttpTimeoutError if failure.kind == "timeout" else HttpConnectionError
        error = self._error(kind, failure.reason)
        return Outcome(failure.kind, error=error, retry=True, failed=True, reset=failure.reset)

    def _answered(self, answer: Answer, now: float) -> Outcome:
        """A complete answer, by what it means."""
        profile = self.settings.profile
        response = Response(
            answer.status,
            answer.headers,
            answer.content,
            self.request.method,
            self.url,
            len(self.history) + 1,
            now - self.started,
            parse_retry_after(answer.headers.get("Retry-After")),
            profile.charset if profile is not None else None,
        )
        if profile is None:
            return self._by_status(response)
        return self._by_verdict(profile.classify(self.request, response), response)

    def _by_status(self, response: Response) -> Outcome:
        """Without a profile the final response is returned whatever its status."""
        status, retry = response.status, self.request.idempotent
        if status == 429:
            return Outcome("throttled", response, None, retry, response.retry_after, throttled=True, failed=None)
        if status in {408, 500, 502, 503, 504}:
            return Outcome("transient", response, None, retry, response.retry_after, failed=True)
        return Outcome("ok", response)

    def _by_verdict(self, verdict: Verdict, response: Response) -> Outcome:
        if isinstance(verdict, Ok | Empty):
            return Outcome("ok" if isinstance(verdict, Ok) else "empty", response)
        idempotent, after_s = self.request.idempotent, response.retry_after
        if isinstance(verdict, Throttled) and verdict.after_s is not None:
            after_s = verdict.after_s
        message = verdict.message or f"status {response.status}"

        def error(kind: type[HttpError]) -> HttpError:
            return self._error(kind, message, response, verdict.code, after_s)

        if isinstance(verdict, Throttled):
            retry = idempotent or not verdict.executed
            return Outcome("throttled", response, error(ThrottledError), retry, after_s, throttled=True, failed=None)
        if isinstance(verdict, Reauth):
            return Outcome("reauth", response, error(UnauthorizedError), renew=True)
        if isinstance(verdict, Rejected):
            return Outcome("rejected", response, error(RejectedError))
        if isinstance(verdict, Transient) and (idempotent or verdict.executed is False):
            return Outcome("transient", response, error(TransientError), True, after_s, failed=True)
        if isinstance(verdict, Ambiguous) and idempotent:
            return Outcome("ambiguous", response, error(TransientError), True, after_s, failed=True)
        return Outcome("ambiguous", response, error(AmbiguousOutcomeError), failed=True)

    async def _renew(self, outcome: Outcome) -> bool:
        """Whether there are new credentials to try; asked for once per call, within the deadline."""
        if self.settings.renewal is None or self.renewed:
            return False
        assert outcome.response is not None
        self.renewed = True
        try:
            async with asyncio.timeout(max(0.0, self.deadline - monotonic())):
                headers = await self.settings.renewal.headers(self.request, outcome.response, self.sent_at)
        except TimeoutError:
            return False
        self.refused.append(self.request)
        fresh = CIMultiDict(self.request.headers)
        fresh.update(headers)
        self.request = replace(self.request, headers=fresh)
        return True

    async def _hold(self, outcome: Outcome) -> None:
        """Tell every process to pause. A limiter that cannot be reached does not spoil the answer we have."""
        settings = self.settings
        if settings.limiter is None or not outcome.after_s:
            return
        seconds = min(outcome.after_s, settings.limit.hold_max)
        try:
            async with asyncio.timeout(max(0.0, self.deadline - monotonic())):
                await settings.limiter.hold(settings.limit, seconds, key=settings.limit_key)
        except (AegisError, TimeoutError) as exc:
            self._log_attempt(logging.WARNING, f"http hold not shared ({type(exc).__name__})")

    def _error(
        self,
        kind: type[HttpError],
        detail: str,
        response: Response | None = None,
        code: str = "",
        retry_after: float | None = None,
    ) -> HttpError:
        redactor, safe = self.settings.redactor, detail
        for request in (self.request, *self.refused):
            safe = redactor.text(safe, redactor.values(request.url, request.headers, request.content))
        safe = safe[:500]
        method, attempts = self.request.method, len(self.history)
        return kind(safe, method, self.url, attempts, response, tuple(self.history), code, retry_after)

    def _log_attempt(self, level: int, event: str) -> None:
        """One structured line about the last attempt."""
        last = self.history[-1]
        fields = {
            "http_attempt": last.number,
            "http_permit_wait_s": last.permit_wait_s,
            "http_status": last.status,
            "http_bytes": last.body_bytes,
            "http_elapsed_s": last.elapsed_s,
        }
        self._log(level, event, last.outcome, last.reason, fields)

    def _log_call(self, level: int, outcome: Outcome, error: AegisError | None = None) -> None:
        """One structured line about the whole call."""
        fields = {
            "http_attempts": len(self.history),
            "http_permit_wait_s": sum(attempt.permit_wait_s for attempt in self.history),
            "http_status": self.history[-1].status if self.history else None,
            "http_bytes": sum(attempt.body_bytes for attempt in self.history),
            "http_elapsed_s": monotonic() - self.started,
        }
        detail = error.detail if isinstance(error, HttpError) else self.settings.redactor.text(str(error or ""))
        self._log(level, "http call" if error is None else "http call failed", outcome.name, detail, fields)

    def _log(self, level: int, event: str, outcome: str, detail: str, fields: dict[str, Any]) -> None:
        fields |= {"http_method": self.request.method, "http_url": self.url, "http_outcome": outcome}
        text = f"{outcome}: {detail}" if detail else outcome
        logger.log(level, "%s %s %s: %s", event, self.request.method, self.url, text, extra=fields)
