"""
One call: deadline, attempts, budget, breaker, permit, send, classify; in this order, outermost first.

The breaker stands before the permit (an open circuit burns none); the permit wait lies outside the attempt's timeout
but inside the deadline. Errors are built as values and raised outside every `except`, so that no driver exception,
whose text can hold a URL, hangs on them as context.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from time import monotonic

from multidict import CIMultiDict

from aegis.errors import AegisError, AmbiguousOutcomeError, CircuitOpenError, HttpError, HttpTimeoutError, RejectedError
from aegis.http._events import log_attempt, log_call, logger
from aegis.http._outcome import Outcome, Stopped, by_status, by_verdict, failed
from aegis.http._shared import Settings, Shared, Upstream
from aegis.http._url import REDIRECTS, redirected
from aegis.http._wire import Answer, Failure, Wire, send
from aegis.http.profile import Request, Response
from aegis.http.records import Attempt
from aegis.http.retry import parse_retry_after


class Call:
    """One call in progress."""

    def __init__(self, shared: Shared, settings: Settings, request: Request, timeout_s: float) -> None:
        self.shared, self.settings, self.request = shared, settings, request
        self.upstream: Upstream = shared.upstream(request.url, settings)
        self.started = monotonic()
        self.deadline = self.started + timeout_s
        self.timeout_s = timeout_s
        self.url = settings.redactor.url(request.url)
        self.earlier: list[Request] = []  #: as it was before a renewal or a redirect; what it held stays secret
        self.hops = 0
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
            if outcome.moved_to is not None:
                error = self._move(outcome)
                if error is not None:
                    return outcome, error
                last, number = None, number - 1
                continue
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
        bad, reset = None, False
        try:
            waited_s = await self._permit()
            if isinstance(waited_s, Stopped):
                return waited_s
            outcome = await self._send(number, waited_s, self.deadline - monotonic())
            bad, reset = outcome.failed, outcome.reset
        finally:
            breaker.leave(era, monotonic(), failed=bad, reset=reset)
        if bad is False:
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
            proxy=self.upstream.proxy,
        )
        now = monotonic()
        if isinstance(answer, Failure):
            outcome = failed(answer, self._error, left=wire.sent, idempotent=self.request.idempotent)
        else:
            outcome = self._answered(answer, now)
        size = len(answer.content) if isinstance(answer, Answer) else 0
        shared.body_bytes += size
        reason = outcome.error.detail if outcome.error is not None else ""
        self.history.append(Attempt(number, outcome.name, answer.status, now - began, waited_s, size, reason))
        if outcome.error is not None:
            outcome.error.attempts, outcome.error.history = len(self.history), tuple(self.history)
        if logger.isEnabledFor(logging.DEBUG):
            self._log_attempt(logging.DEBUG, "http attempt")
        return outcome

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
        idempotent = self.request.idempotent
        if self.settings.redirects_max and idempotent and answer.status in REDIRECTS and "Location" in answer.headers:
            return Outcome("redirect", response, moved_to=answer.headers["Location"])
        if profile is None:
            return by_status(response, idempotent=idempotent)
        return by_verdict(profile.classify(self.request, response), response, self._error, idempotent=idempotent)

    def _move(self, outcome: Outcome) -> HttpError | None:
        """Go where the redirect points, so that the next attempt is for that place and its breaker; or say why not."""
        response, limit = outcome.response, self.settings.redirects_max
        assert response is not None
        assert outcome.moved_to is not None
        target = redirected(self.request, response.status, outcome.moved_to, self.settings.redactor)
        if self.hops >= limit:
            target = f"more than {limit} redirects"
        if isinstance(target, str):
            return self._error(RejectedError, f"{target} is not followed", response)
        self.hops += 1
        self.earlier.append(self.request)
        self.request, self.url = target, self.settings.redactor.url(target.url)
        self.upstream = self.shared.upstream(target.url, self.settings)
        return None

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
        self.earlier.append(self.request)
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
        for request in (self.request, *self.earlier):
            safe = redactor.text(safe, redactor.values(request.url, request.headers, request.content))
        safe = safe[:500]
        method, attempts = self.request.method, len(self.history)
        return kind(safe, method, self.url, attempts, response, tuple(self.history), code, retry_after)

    def _log_attempt(self, level: int, event: str) -> None:
        log_attempt(level, event, self.request.method, self.url, self.history[-1])

    def _log_call(self, level: int, outcome: Outcome, error: AegisError | None = None) -> None:
        detail = error.detail if isinstance(error, HttpError) else self.settings.redactor.text(str(error or ""))
        elapsed_s = monotonic() - self.started
        log_call(
            level, self.request.method, self.url, self.history, outcome=outcome.name, elapsed_s=elapsed_s, detail=detail
        )
