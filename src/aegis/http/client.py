"""
The HTTP client: one pool, and cheap clients derived from it, each with its own limiter, retries and profile.

Built on aiohttp, which costs a fifth of httpx per request. Redirects are followed only where `with_redirects` says so,
and by our own rules: every client that was looked at forwards `appkey` to another host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ssl import SSLContext
from typing import Any, Self
from urllib.parse import urlencode

import msgspec
from multidict import CIMultiDict

from aegis.config import HttpConfig
from aegis.errors import RejectedError
from aegis.http._call import Call
from aegis.http._renewal import Renewal
from aegis.http._shared import Settings, Shared
from aegis.http._url import ascii_url, query_of, without_controls
from aegis.http.breaker import BreakerPolicy
from aegis.http.profile import Profile, Request, Response
from aegis.http.records import HttpStats, Limiter, LimitT, Renew
from aegis.http.retry import IDEMPOTENT_METHODS, RetryPolicy

_DEFAULT_HEADERS = {"User-Agent": "aegis"}
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
        return f"HttpClient(profile={profile!r}, limit={limit!r}, in_flight={self._shared.in_flight})"

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

    def with_secrets(self, names: Iterable[str]) -> HttpClient:
        """A client that masks these names as well."""
        return self._derive(replace(self._settings, redactor=self._settings.redactor.with_names(names)))

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
        return self._derive(replace(self._settings, redirects_max=hops_max))

    def with_tls(self, context: SSLContext) -> HttpClient:
        """A client with its own TLS rules."""
        return self._derive(replace(self._settings, tls=context))

    # --- call ---

    async def get(self, url: str, **options: Any) -> Response:
        """GET; options as in `request`."""
        return await self.request("GET", url, **options)

    async def post(
        self, url: str, content: bytes | str = b"", content_type: str = "application/octet-stream", **options: Any
    ) -> Response:
        """POST bytes or text (as UTF-8)."""
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
        content: bytes | str | None = None,
        content_type: str | None = None,
        timeout: float | None = None,
        idempotent: bool | None = None,
    ) -> Response:
        """
        One call: up to `RetryPolicy.attempts` requests within `timeout` seconds, permit waits and bodies included.

        `idempotent=True` allows a POST to be repeated. Bodies are bytes or text, so every attempt sends the same.

        Raises:
            RejectedError: the upstream refused it, or it is no request that can be sent (a line break in a header).
            RateLimitTimeoutError: no permit within the deadline; nothing was sent.
            CircuitOpenError: the upstream failed too often; nothing was sent.
            AmbiguousOutcomeError: a request that must not be repeated left, and its outcome is unknown.
            HttpError: any other end, see its subclasses; the last answer is in `response`.
        """
        settings, method = self._settings, method.upper()
        self._shared.session()
        if _METHOD(method) is None:
            raise RejectedError(f"{method!r} is no method", url=self._settings.redactor.url(url))
        plain = ascii_url(url)
        if plain is None:
            shown = without_controls(settings.redactor.url(url))
            raise RejectedError("not a URL to fetch: it needs http or https and no control characters", method, shown)
        url = plain
        if params:
            url = f"{url}{'&' if '?' in url else '?'}{query_of(params)}"
        all_headers = CIMultiDict(_DEFAULT_HEADERS)
        if settings.profile is not None:
            all_headers.update(settings.profile.default_headers)
        if content_type is not None:
            all_headers["Content-Type"] = content_type
        if headers:
            all_headers.update(headers)
        body = content.encode() if isinstance(content, str) else content
        repeatable = method in IDEMPOTENT_METHODS if idempotent is None else idempotent
        request = Request(method, url, all_headers, body, repeatable)
        timeout_s = self._shared.config.timeout if timeout is None else timeout
        return await Call(self._shared, settings, request, timeout_s).run()

    def stats(self) -> HttpStats:
        """Totals of this client and all that share its pool."""
        shared = self._shared
        return HttpStats(
            shared.calls,
            shared.attempts,
            shared.retries,
            shared.failures,
            shared.throttled,
            shared.ambiguous,
            shared.circuit_refusals,
            shared.budget_refusals,
            shared.permit_wait_s,
            shared.body_bytes,
            shared.in_flight,
            shared.circuits(),
        )

    def _derive(self, settings: Settings) -> HttpClient:
        self._check(settings)
        derived = object.__new__(HttpClient)
        derived._shared, derived._settings = self._shared, settings
        return derived

    def _check(self, settings: Settings) -> None:
        policy, attempt_s = settings.breaker_policy, self._shared.config.attempt_timeout
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
