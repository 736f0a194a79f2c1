"""What all clients derived from one share (pool, breakers, budgets, totals), and what each has of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from aegis.config import HttpConfig
from aegis.errors import ClosedError
from aegis.http._proxy import proxies_of_environment, proxy_for
from aegis.http._renewal import Renewal
from aegis.http._wire import legacy_rsa_context, open_session
from aegis.http.breaker import Breaker, BreakerPolicy
from aegis.http.profile import Profile
from aegis.http.records import Limiter
from aegis.http.redact import Redactor
from aegis.http.retry import RetryBudget, RetryPolicy

_UPSTREAMS_MAX = 1024
_DEFAULT_BREAKER = BreakerPolicy()


@dataclass(frozen=True, slots=True)
class Settings:
    """What a `with_*` changes."""

    retry: RetryPolicy = field(default_factory=RetryPolicy)
    breaker: BreakerPolicy | None = None  #: the caller's own
    redactor: Redactor = field(default_factory=Redactor)
    profile: Profile | None = None
    limiter: Limiter[Any] | None = None
    limit: Any = None
    limit_key: str = field(default="", repr=False)
    renewal: Renewal | None = None
    tls: ssl.SSLContext | None = None
    redirects_max: int = 0
    upstreams: dict[str, Upstream] = field(default_factory=dict, init=False, repr=False)  #: found before, by origin

    @property
    def breaker_policy(self) -> BreakerPolicy:
        """The caller's, else the profile's, else the default."""
        return self.breaker or (self.profile and self.profile.breaker) or _DEFAULT_BREAKER


@dataclass(slots=True)
class Upstream:
    """One host's breaker and budget, and the proxy on the way to it."""

    host: str
    breaker: Breaker
    budget: RetryBudget
    proxy: str | None = field(default=None, repr=False)  #: may hold a password


class Shared:
    """The pool and the books of a family of clients."""

    def __init__(self, config: HttpConfig) -> None:
        self.config = config
        self.calls = self.attempts = self.retries = self.failures = 0
        self.throttled = self.ambiguous = self.circuit_refusals = self.budget_refusals = 0
        self.permit_wait_s, self.body_bytes, self.in_flight = 0.0, 0, 0
        self.upstreams: dict[tuple[str, str, BreakerPolicy, float], Upstream] = {}
        self.flights: set[asyncio.Task[Any]] = set()  #: renewals in progress; they outlive the call that began them
        self._proxies: dict[str, str] = {}
        self._session: aiohttp.ClientSession | None = None
        self._legacy: ssl.SSLContext | None = None

    def open(self) -> None:
        """Open the pool; connections are made when they are needed."""
        self._proxies = proxies_of_environment() if self.config.proxy_from_env else {}
        self._session = open_session(
            connections_max=self.config.max_connections,
            per_host_max=self.config.max_connections_per_host,
            connect_timeout_s=self.config.connect_timeout,
        )

    async def close(self) -> None:
        """Close the pool, and end the renewals that are in progress."""
        for flight in self.flights:
            flight.cancel()
        await asyncio.gather(*self.flights, return_exceptions=True)
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def session(self) -> aiohttp.ClientSession:
        """The open pool."""
        if self._session is None:
            raise ClosedError("HttpClient")
        return self._session

    def upstream(self, url: str, settings: Settings) -> Upstream:
        """Breaker and budget of the URL's host under these settings."""
        origin = "/".join(url.split("/", 3)[:3])
        found = settings.upstreams.get(origin)
        if found is None:
            if len(settings.upstreams) >= _UPSTREAMS_MAX:
                settings.upstreams.clear()
            found = settings.upstreams[origin] = self._upstream(url, settings)
        return found

    def circuits(self) -> dict[str, str]:
        """The state of every host's breaker; of several, the one least closed."""
        states: dict[str, str] = {}
        for upstream in self.upstreams.values():
            state, known = upstream.breaker.state, states.get(upstream.host, "closed")
            states[upstream.host] = max(known, state, key=("closed", "half-open", "open").index)
        return states

    def _upstream(self, url: str, settings: Settings) -> Upstream:
        host = ""
        with contextlib.suppress(ValueError):  # not a URL: sending it will say so
            host = urlsplit(url).netloc.rpartition("@")[2].lower()
        policy = settings.breaker_policy
        key = (url.partition(":")[0].lower(), host, policy, settings.retry.budget_tokens)
        found = self.upstreams.get(key)
        if found is None:
            if len(self.upstreams) >= _UPSTREAMS_MAX:
                self.upstreams.pop(next(iter(self.upstreams)))
            budget, proxy = RetryBudget(settings.retry.budget_tokens), proxy_for(url, host, self._proxies)
            found = Upstream(host, Breaker(policy), budget, proxy)
            self.upstreams[key] = found
        return found

    def tls(self, settings: Settings) -> ssl.SSLContext | bool:
        """The TLS rules that apply: the caller's context, the profile's, or aiohttp's verifying default."""
        if settings.tls is not None:
            return settings.tls
        if settings.profile is not None and settings.profile.tls == "legacy_rsa":
            if self._legacy is None:
                self._legacy = legacy_rsa_context()
            return self._legacy
        return True
