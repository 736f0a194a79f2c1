"""
One call: deadline, attempts, budget, breaker, permit, send, classify; in this order, outermost first.

The breaker stands before the permit (an open circuit burns none); the permit wait lies outside the attempt's timeout
but inside the deadline. Errors are built as values and raised outside every `except`, so that no driver exception,
whose text can hold a URL, hangs on them as context.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from itertools import count
from time import monotonic

from aiohttp import ClientResponse
from msgspec import structs
from multidict import CIMultiDict

from aegis.errors import AegisError, CircuitOpenError, HttpError, HttpTimeoutError, RejectedError
from aegis.http._events import log_attempt, log_call, logger, tell
from aegis.http._hedge import Race, may_hedge
from aegis.http._outcome import Outcome, Stopped, by_status, by_verdict, ending_of, failed, unreadable
from aegis.http._shared import Settings, Shared, Upstream
from aegis.http._url import REDIRECTS, redirected, same_origin
from aegis.http._watch import Limit
from aegis.http._wire import Answer, Failure, begin, send
from aegis.http.profile import Request, Response
from aegis.http.records import Attempt, CallRecord
from aegis.http.retry import parse_retry_after

_numbers = count(1)


class Call:
    """One call in progress."""

    __slots__ = (
        "abroad", "deadline", "earlier", "history", "hops", "number", "renewed", "request", "rest", "sent_at",
        "settings", "shared", "started", "streaming", "timeout_s", "upstream", "url",
    )  # fmt: skip

    def __init__(
        self, shared: Shared, settings: Settings, request: Request, timeout_s: float, *, streaming: bool = False
    ) -> None:
        self.shared, self.settings, self.request, self.streaming = shared, settings, request, streaming
        self.upstream: Upstream = shared.upstream(request.url, settings)
        self.started = monotonic()
        self.deadline = self.started + timeout_s
        self.timeout_s = timeout_s
        self.number = next(_numbers)
        self.url = settings.redactor.url(request.url)
        self.earlier: list[Request] = []  #: as it was before a renewal or a redirect; what it held stays secret
        self.hops = 0
        self.abroad = False  #: a redirect led to another origin, which no credentials are for
        self.history: list[Attempt] = []
        self.renewed = False
        self.sent_at = 0.0
        self.rest: ClientResponse | None = None  #: the body of a stream, still on the wire; its reader ends the call

    async def run(self) -> Response:
        """Attempt until there is an answer to return or an error to raise."""
        self.upstream.tally.calls += 1
        self.upstream.tally.in_flight += 1
        try:
            outcome, error = await self._attempts()
        except BaseException as exc:
            self.end(ending_of(exc), exc)
            raise
        if error is not None:
            self.end(outcome.name, error)
            raise error
        if self.rest is None:  # else its reader ends the call
            self.end(outcome.name)
        assert outcome.response is not None
        return outcome.response

    def end(self, outcome: str, error: BaseException | None = None) -> None:
        """Count, log and tell how the call ended, once for every call. A cancelled one is no failure."""
        tally, is_failure = self.upstream.tally, isinstance(error, Exception)
        tally.in_flight -= 1
        if is_failure:
            tally.failures += 1
        elif not self.shared.observers and not logger.isEnabledFor(logging.DEBUG):
            return
        record = self._record(outcome, type(error).__name__ if is_failure else "")
        log_call(logging.ERROR if is_failure else logging.DEBUG, record, self._words_of(error))
        for observe in self.shared.observers:
            tell(observe, record)

    def end_stream(self, outcome: str, error: BaseException | None, received_bytes: int) -> None:
        """The reader of the rest is done with it, one way or the other."""
        rest, self.rest = self.rest, None
        assert rest is not None
        rest.release()
        last = self.history[-1]
        self.upstream.tally.body_bytes += received_bytes - last.body_bytes
        self.history[-1] = structs.replace(last, body_bytes=received_bytes, elapsed_s=monotonic() - self.sent_at)
        self.end(outcome, error)

    def broken(self, failure: Failure) -> tuple[str, HttpError]:
        """What it means that the rest of a body did not come."""
        outcome = failed(failure, self._error, idempotent=self.request.idempotent)
        assert outcome.error is not None
        return outcome.name, outcome.error

    async def _attempts(self) -> tuple[Outcome, Exception | None]:
        last: Outcome | None = None
        number = 0
        while True:
            number += 1
            outcome = await self._attempt(number)
            if isinstance(outcome, Stopped):
                self.upstream.tally.refusals[outcome.by] += 1
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
            number += outcome.hedges
            if outcome.renew and await self._renew(outcome):
                number -= 1
                continue
            delay_s = self._retry_in_s(outcome, number)
            if delay_s is None:
                return outcome, outcome.error
            self.upstream.tally.retries += 1
            self._log_attempt(logging.WARNING, "http retry", f"again in {delay_s:.3f} s")
            await self.upstream.route.watch.sleep(delay_s)

    def _retry_in_s(self, outcome: Outcome, number: int) -> float | None:
        """When to try again; None when this outcome is the last. A delay beyond the deadline ends the call now."""
        policy = self.settings.retry
        if not outcome.retry or number >= policy.attempts:
            return None
        backoff = policy.throttle_backoff if outcome.throttled else policy.backoff
        delay_s = max(outcome.after_s or 0.0, backoff.delay_s(number))
        if delay_s >= self.deadline - monotonic():
            self._stop(outcome, "deadline")
            return None
        if not self.upstream.budget.spend(policy.throttle_cost if outcome.throttled else policy.transient_cost):
            self._stop(outcome, "budget")
            if outcome.error is not None:
                outcome.error.retry_budget_exhausted = True
            return None
        return delay_s

    def _stop(self, outcome: Outcome, by: str) -> None:
        self.upstream.tally.refusals[by] += 1
        outcome.stopped(by)

    async def _attempt(self, number: int) -> Outcome | Stopped:
        """One attempt; `Stopped` when it could not be made, and then nothing was sent."""
        breaker = self.upstream.breaker
        era, wait_s = breaker.enter(monotonic())
        if era < 0:
            reason = f"the circuit of {self.upstream.host} is open; next probe in {wait_s:.1f} s; nothing was sent"
            return Stopped("circuit", self._error(CircuitOpenError, reason, retry_after=wait_s))
        bad, reset = None, False
        try:
            waited_s = 0.0
            if self.settings.limiter is not None or monotonic() >= self.deadline:
                permit = await self._permit()
                if isinstance(permit, Stopped):
                    return permit
                waited_s = permit
            outcome = await self._send(number, waited_s)
            bad, reset = outcome.failed, outcome.reset
        finally:
            breaker.leave(era, monotonic(), failed=bad, reset=reset)
        if bad is False:
            self.upstream.budget.refund(self.settings.retry.refund)
        else:
            await self._hold(outcome.after_s or 0.0)
        return outcome

    async def _permit(self) -> float | Stopped:
        """Seconds waited for the permit. An error of the limiter (a refusal, an outage, any) stays as it is."""
        settings, began = self.settings, monotonic()
        limit, error = self._within_deadline(), None
        if settings.limiter is not None:
            try:
                with limit:
                    await settings.limiter.wait(settings.limit, key=settings.limit_key, timeout=self.deadline - began)
            except Exception as exc:
                if self.upstream.route.watch.closed:
                    raise
                error = exc
        waited_s = monotonic() - began
        self.upstream.tally.permit_wait_s += waited_s
        if error is not None and not limit.expired:
            return Stopped("limiter", error)
        if limit.expired or monotonic() >= self.deadline:
            reason = f"the total deadline of {self.timeout_s:.3f} s passed before an attempt began; nothing was sent"
            return Stopped("deadline", self._error(HttpTimeoutError, reason))
        return waited_s

    async def _send(self, number: int, waited_s: float) -> Outcome:
        tally, began = self.upstream.tally, monotonic()
        tally.attempts += 1
        self.sent_at = began
        race = self._race(number) if self.settings.hedge_after_s else None
        try:
            answer = await (self._exchange() if race is None else race.run())
        except BaseException as exc:
            tally.outcomes[ending_of(exc)] += 1 if race is None else race.sent
            raise
        now = monotonic()
        if race is not None and race.sent == 2:
            lost = number + (not race.second_won)
            self._note(Attempt(lost, "hedged", None, now - began, 0.0, 0, started_s=began - self.started))
            number += race.second_won
        if isinstance(answer, Failure):
            outcome, size = failed(answer, self._error, idempotent=self.request.idempotent), 0
        else:
            outcome, size = self._answered(answer, now), len(answer.content)
        error = outcome.error
        reason = error.detail if error is not None else ""
        elapsed_s, started_s = now - began, began - self.started
        self._note(Attempt(number, outcome.name, answer.status, elapsed_s, waited_s, size, reason, started_s))
        if error is not None:
            error.attempts, error.history = len(self.history), tuple(self.history)
        if logger.isEnabledFor(logging.DEBUG):
            self._log_attempt(logging.DEBUG, "http attempt")
        if race is not None:
            outcome.hedges = race.sent - 1
            pauses = (self._answered(refusal, now).after_s for refusal in race.refusals if refusal is not answer)
            await self._hold(max((seconds for seconds in pauses if seconds), default=0.0))
        return outcome

    def _note(self, attempt: Attempt) -> None:
        self.history.append(attempt)
        self.upstream.tally.attempt(attempt)

    def _race(self, number: int) -> Race | None:
        if self.streaming or not may_hedge(self.request, self.settings, self.upstream, number):
            return None
        return Race(self.settings, self.upstream, self._exchange)

    def _exchange(self) -> Awaitable[Answer | Failure]:
        """The request and what comes back: from the wire, or from a cassette."""
        timeout_s = min(self.shared.config.attempt_timeout, self.deadline - monotonic())
        request, route, cassette = self.request, self.upstream.route, self.settings.cassette
        if cassette is not None:
            return cassette.exchange(request, self.settings.redactor, lambda: send(request, route, timeout_s))
        return begin(request, route, timeout_s) if self.streaming else send(request, route, timeout_s)

    def _answered(self, answer: Answer, now: float) -> Outcome:
        """An answer, by what it means."""
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
            if answer.rest is not None:
                answer.rest.release()
            return Outcome("redirect", response, moved_to=answer.headers["Location"])
        if answer.rest is not None:
            self.rest = answer.rest
            return Outcome("ok", response)
        if profile is None:
            return by_status(response, idempotent=idempotent)
        try:
            verdict = profile.classify(self.request, response)
        except Exception as exc:  # noqa: BLE001 - a fault of the profile must not hide that an order may be executed
            return unreadable(exc, profile.name, response, self._error, idempotent=idempotent)
        return by_verdict(verdict, response, self._error, idempotent=idempotent)

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
        self.abroad = self.abroad or not same_origin(self.request.url, target.url)
        self.earlier.append(self.request)
        self.request, self.url = target, self.settings.redactor.url(target.url)
        self.upstream.tally.in_flight -= 1
        self.upstream = self.shared.upstream(target.url, self.settings)
        self.upstream.tally.in_flight += 1
        return None

    async def _renew(self, outcome: Outcome) -> bool:
        """Whether there are new credentials to try; asked for once per call, within the deadline, and never abroad."""
        if self.settings.renewal is None or self.renewed or self.abroad:
            return False
        assert outcome.response is not None
        self.renewed = True
        limit = self._within_deadline()
        try:
            with limit:
                headers = await self.settings.renewal.headers(self.request, outcome.response, self.sent_at)
        except TimeoutError:
            if limit.expired:
                return False
            raise
        self.earlier.append(self.request)
        fresh = CIMultiDict(self.request.headers)
        fresh.update(headers)
        self.request = structs.replace(self.request, headers=fresh)
        return True

    async def _hold(self, seconds: float) -> None:
        """Tell every process to pause. A limiter that cannot be reached does not spoil the answer we have."""
        settings = self.settings
        if settings.limiter is None or not seconds:
            return
        try:
            with self._within_deadline():
                await settings.limiter.hold(
                    settings.limit, min(seconds, settings.limit.hold_max), key=settings.limit_key
                )
        except Exception as exc:  # noqa: BLE001 - whatever a limiter raises
            self._log_attempt(logging.WARNING, "http hold not shared", type(exc).__name__)

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

    def _within_deadline(self) -> Limit:
        return self.upstream.route.watch.within(self.deadline - monotonic())

    def _words_of(self, error: BaseException | None) -> str:
        """What may be logged of an error: those of others hold who knows what, so only their names."""
        if isinstance(error, HttpError):
            return error.detail
        if isinstance(error, AegisError):
            return self.settings.redactor.text(str(error))
        return type(error).__name__ if isinstance(error, Exception) else ""

    def _record(self, outcome: str, error: str = "") -> CallRecord:
        elapsed_s, method = monotonic() - self.started, self.request.method
        history = tuple(self.history)
        return CallRecord(method, self.url, self.upstream.host, outcome, history, elapsed_s, error, self.number)

    def _log_attempt(self, level: int, event: str, detail: str = "") -> None:
        log_attempt(level, event, self._record("in progress"), detail)
