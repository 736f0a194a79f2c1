"""
The HTTP client: one pool, and cheap clients derived from it, each with its own limiter, retries and profile.

Built on aiohttp, which costs a fifth of httpx per request. Redirects are followed only where `with_redirects` says so,
and by our own rules: every client that was looked at forwards `appkey` to another host.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from math import isnan
from ssl import SSLContext
from typing import Any, Self, TypeAlias
from urllib.parse import urlencode

import msgspec
from multidict import CIMultiDict
from pydantic import SecretStr

from aegis.config import HttpConfig
from aegis.errors import OneShotBodyError, RejectedError
from aegis.http._call import Call
from aegis.http._renewal import Renewal
from aegis.http._shared import Settings, Shared
from aegis.http._url import ascii_url, query_of, without_controls
from aegis.http.breaker import BreakerPolicy
from aegis.http.cassette import Cassette
from aegis.http.profile import Content, Profile, Request, Response
from aegis.http.records import HttpStats, Limiter, LimitT, Observe, Renew
from aegis.http.retry import IDEMPOTENT_METHODS, RetryPolicy
from aegis.http.stream import StreamedResponse

#: What a caller may give as a body: text goes out as UTF-8; an iterator can be read once, so it is sent at most once.
Body: TypeAlias = Content | str | bytearray | memoryview | Iterable[bytes] | AsyncIterable[bytes]

_DEFAULT_HEADERS = {"User-Agent": "aegis"}
_COMMON_METHODS = IDEMPOTENT_METHODS | {"POST", "PATCH"}
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Z-]+").fullmatch  # a token of RFC 9110 5.6.2


class HttpClient:
    """
    Calls over HTTP, each within one total deadline.

    Close the client that you opened; those derived from it by `with_*` share its pool and close with it.
    """

    def __init__(self, config: HttpConfig | None = None) -> None:
        self._shared = Shared(config or HttpConfig())
        self._settings = Settings()
        self._check(self._settings)

    async def __aenter__(self) -> Self:
        self._shared.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._shared.close()

    def __repr__(self) -> str:
        profile = self._settings.profile.name if self._settings.profile else None
        limit = self._settings.limit.name if self._settings.limit else None
        return f"HttpClient(profile={profile!r}, limit={limit!r}, in_flight={self.stats().in_flight})"

    # --- derive ---

    def with_rate_limiter(self, limiter: Limiter[LimitT], limit: LimitT, key: str = "") -> HttpClient:
        """A client that takes one permit of `limit` for every request that goes on the wire."""
        return self._derive(replace(self._settings, limiter=limiter, limit=limit, limit_key=key))

    def with_retry(self, policy: RetryPolicy) -> HttpClient:
        """A client with other retries."""
        return self._derive(replace(self._settings, retry=policy))

    def without_retry(self) -> HttpClient:
        """A client that makes one attempt."""
        return self.with_retry(replace(self._settings.retry, attempts=1))

    def with_breaker(self, policy: BreakerPolicy) -> HttpClient:
        """A client with another breaker."""
        return self._derive(replace(self._settings, breaker=policy))

    def with_profile(self, profile: Profile) -> HttpClient:
        """A client that knows what the upstream means."""
        redactor = self._settings.redactor.with_names(profile.secret_names)
        return self._derive(replace(self._settings, profile=profile, redactor=redactor))

    def with_secrets(self, names: Iterable[str] = (), values: Iterable[str | SecretStr] = ()) -> HttpClient:
        """A client that masks the values of these names as well, and these values wherever they stand."""
        plain = [value.get_secret_value() if isinstance(value, SecretStr) else value for value in values]
        return self._derive(replace(self._settings, redactor=self._settings.redactor.with_names(names, plain)))

    def with_reauth(self, reauth: Renew) -> HttpClient:
        """
        A client that renews its credentials, at most once per call, when the profile says `Reauth`.

        Calls that are refused together share one renewal, so one `with_reauth` stands for one set of credentials.
        """
        return self._derive(replace(self._settings, renewal=Renewal(reauth, self._shared.flights)))

    def with_redirects(self, hops_max: int = 5) -> HttpClient:
        """
        A client that follows redirects, up to that many per call; each hop takes a permit. 0 switches it off again.

        Only requests that may be repeated are followed. Another origin gets no header and no query key of a secret
        name and no body; from https to http nothing is sent.
        """
        if hops_max < 0:
            raise ValueError(f"hops_max={hops_max} must not be negative")
        return self._derive(replace(self._settings, redirects_max=hops_max))

    def with_hedging(self, after_s: float) -> HttpClient:
        """
        A client that sends a GET or HEAD a second time when it is not answered within `after_s` seconds; 0: never.

        The first good answer counts, the other request is cancelled. The second leaves only if a permit is free at that
        moment and the retry budget pays for it, and is one of `RetryPolicy.attempts`; both stand in the history, the
        loser as `hedged`. Choose a time that few calls exceed, such as their p95: every hedge costs quota.
        """
        return self._derive(replace(self._settings, hedge_after_s=after_s))

    def with_tls(self, context: SSLContext) -> HttpClient:
        """A client with its own TLS rules."""
        return self._derive(replace(self._settings, tls=context))

    def with_cassette(self, cassette: Cassette) -> HttpClient:
        """A client that records what it is answered, or is answered from a recording, as the cassette says."""
        return self._derive(replace(self._settings, cassette=cassette))

    def observe(self, observe: Observe) -> None:
        """Call `observe` with the record of every call of this client and all that share its pool, from now on."""
        self._shared.observers.append(observe)

    # --- call ---

    async def get(self, url: str, **options: Any) -> Response:
        """GET; options as in `request`."""
        return await self.request("GET", url, **options)

    async def post(
        self, url: str, content: Body = b"", content_type: str = "application/octet-stream", **options: Any
    ) -> Response:
        """POST bytes or text (as UTF-8), or pieces of bytes; see `request`."""
        return await self.request("POST", url, content=content, content_type=content_type, **options)

    async def post_json(self, url: str, obj: Any, **options: Any) -> Response:
        """POST anything that msgspec encodes, as JSON."""
        content = msgspec.json.encode(obj)
        return await self.post(url, content, "application/json; charset=utf-8", **options)

    async def post_form(self, url: str, mapping: Mapping[str, Any], **options: Any) -> Response:
        """POST a form."""
        return await self.post(url, urlencode(mapping, doseq=True), "application/x-www-form-urlencoded", **options)

    async def request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: Body | None = None,
        content_type: str | None = None,
        timeout: float | None = None,
        idempotent: bool | None = None,
    ) -> Response:
        """
        One call: up to `RetryPolicy.attempts` requests within `timeout` seconds, permit waits and bodies included.

        `idempotent=True` allows a POST to be repeated. A body is bytes or text, or a function that gives its pieces
        from the beginning each time, so that every attempt sends the same.

        Raises:
            RejectedError: the upstream refused it, or it is no request that can be sent (a line break in a header).
            OneShotBodyError: the body is an iterator, and this client may have to send it twice; nothing was sent.
            RateLimitTimeoutError: no permit within the deadline; nothing was sent.
            CircuitOpenError: the upstream failed too often; nothing was sent.
            AmbiguousOutcomeError: a request that must not be repeated left, and its outcome is unknown.
            HttpError: any other end, see its subclasses; the last answer is in `response`.
        """
        request = self._request(
            method,
            url,
            params=params,
            headers=headers,
            content=content,
            content_type=content_type,
            idempotent=idempotent,
        )
        return await Call(self._shared, self._settings, request, self._timeout_s(timeout)).run()

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        body_bytes_max: int | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> AsyncIterator[StreamedResponse]:
        """
        `async with http.stream("GET", url) as response:` gives the answer as soon as its body begins.

        Attempts, errors and options are those of `request`; `timeout` bounds the whole, the reading included, so give
        a large file the time it needs. `body_bytes_max` bounds the decoded body; None takes any length.
        """
        request = self._request(method, url, **options)
        call = Call(self._shared, self._settings, request, self._timeout_s(timeout), streaming=True)
        response = StreamedResponse(call, await call.run(), body_bytes_max)
        try:
            yield response
        finally:
            response.close()

    def stats(self) -> HttpStats:
        """Totals of this client and all that share its pool."""
        return self._shared.stats()

    def _request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: Body | None = None,
        content_type: str | None = None,
        idempotent: bool | None = None,
    ) -> Request:
        """The request as it goes out; refused here if it cannot."""
        settings, method = self._settings, method.upper()
        self._shared.session()
        if method not in _COMMON_METHODS and _METHOD(method) is None:
            raise RejectedError(f"{method!r} is no method", url=settings.redactor.url(url))
        plain = ascii_url(url)
        if plain is None:
            shown = without_controls(settings.redactor.url(url))
            reason = "not a URL to fetch: it needs http or https, a port that is a number, and no control characters"
            raise RejectedError(reason, method, shown)
        url = plain
        if params:
            url = f"{url}{'&' if '?' in url else '?'}{query_of(params)}"
        all_headers = CIMultiDict(_DEFAULT_HEADERS)
        if settings.profile is not None:
            all_headers.update(settings.profile.default_headers)
        if content_type is not None:
            all_headers["Content-Type"] = content_type
        if headers:
            _refuse_other_than_text(headers)
            all_headers.update(headers)
        repeatable = method in IDEMPOTENT_METHODS if idempotent is None else idempotent
        body = None if content is None else self._replayable(method, url, content)
        return Request(method, url, all_headers, body, repeatable)

    def _replayable(self, method: str, url: str, content: Body) -> Content:
        """The body in a form that every attempt can send."""
        if not callable(content) and not hasattr(content, "__iter__") and not hasattr(content, "__aiter__"):
            raise TypeError(f"a body is bytes, text, or gives pieces of bytes, not {type(content).__name__}")
        if isinstance(content, str):
            return content.encode()
        if isinstance(content, bytes | bytearray | memoryview):
            return bytes(content)
        if callable(content):
            return content
        settings = self._settings
        if settings.retry.attempts > 1 or settings.renewal is not None or settings.redirects_max:
            reason = (
                f"a {type(content).__name__} can be read once, but RetryPolicy.attempts={settings.retry.attempts}: "
                "pass bytes, a function that gives the pieces anew, or use without_retry()"
            )
            raise OneShotBodyError(reason, method, settings.redactor.url(url))
        pieces = content
        return lambda: pieces

    def _timeout_s(self, timeout: float | None) -> float:
        if timeout is None:
            return self._shared.config.timeout
        if isnan(timeout):
            raise ValueError(f"timeout={timeout} is not a number of seconds")
        return timeout

    def _derive(self, settings: Settings) -> HttpClient:
        self._check(settings)
        derived = object.__new__(HttpClient)
        derived._shared, derived._settings = self._shared, settings
        return derived

    def _check(self, settings: Settings) -> None:
        policy, retry = settings.breaker_policy, settings.retry
        attempt_s, total_s = self._shared.config.attempt_timeout, self._shared.config.timeout
        floor_s = min(retry.backoff.floor_s, retry.throttle_backoff.floor_s)
        if retry.attempts > 1 and floor_s >= total_s:
            raise ValueError(
                f"RetryPolicy.attempts={retry.attempts}, but its shortest delay floor_s={floor_s} is not below "
                f"HTTP_TIMEOUT={total_s}: no second attempt could ever be made"
            )
        self._check_hedging(settings, attempt_s)
        if policy.window_s < 2 * attempt_s:
            raise ValueError(
                f"BreakerPolicy.window_s={policy.window_s} is below twice HTTP_ATTEMPT_TIMEOUT={attempt_s}: "
                "slow failures would leave the window before they are counted"
            )
        if settings.breaker is None:
            return  # the default and a profile's serve all clients of a host, fast and slow ones together
        for rate in getattr(settings.limit, "rates", ()):
            calls = rate.limit / rate.per * policy.window_s
            if calls < policy.calls_min:
                raise ValueError(
                    f"BreakerPolicy.calls_min={policy.calls_min} can never be reached: limit {settings.limit.name!r} "
                    f"allows {calls:g} calls in window_s={policy.window_s}"
                )

    @staticmethod
    def _check_hedging(settings: Settings, attempt_s: float) -> None:
        after_s, attempts = settings.hedge_after_s, settings.retry.attempts
        if not 0 <= after_s < attempt_s:
            raise ValueError(
                f"after_s={after_s} must not be negative, and below HTTP_ATTEMPT_TIMEOUT={attempt_s}: "
                "the first request would have ended before the second began"
            )
        if after_s and attempts < 2:
            raise ValueError(
                f"after_s={after_s}, but RetryPolicy.attempts={attempts}: a second request could never be made"
            )


def _refuse_other_than_text(headers: Mapping[str, str]) -> None:
    pairs: Iterable[tuple[object, object]] = headers.items()
    for name, value in pairs:
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"a header is text, but {name!r} is {type(value).__name__}")
