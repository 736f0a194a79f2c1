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
from aegis.http._tally import Tally, total
from aegis.http._watch import Watch
from aegis.http._wire import Route, legacy_rsa_context, open_session
from aegis.http.breaker import Breaker, BreakerPolicy
from aegis.http.cassette import Cassette
from aegis.http.profile import Profile
from aegis.http.records import HttpStats, Limiter, Observe
from aegis.http.redact import Redactor
from aegis.http.retry import RetryBudget, RetryPolicy

_UPSTREAMS_MAX = 1024
_OTHERS = "(others)"  #: the tally of all hosts beyond the bound
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
    hedge_after_s: float = 0.0  #: 0: never
    cassette: Cassette | None = None
    upstreams: dict[str, Upstream] = field(default_factory=dict, init=False, repr=False)  #: found before, by origin

    @property
    def breaker_policy(self) -> BreakerPolicy:
        """The caller's, else the profile's, else the default."""
        return self.breaker or (self.profile and self.profile.breaker) or _DEFAULT_BREAKER


@dataclass(frozen=True, slots=True)
class Upstream:
    """One host as one client sees it: breaker, budget and counts, which are shared, and the way there."""

    host: str
    breaker: Breaker
    budget: RetryBudget
    tally: Tally
    route: Route


class Shared:
    """The pool and the books of a family of clients."""

    def __init__(self, config: HttpConfig) -> None:
        self.config = config
        self.observers: list[Observe] = []
        self.flights: set[asyncio.Task[Any]] = set()  #: renewals in progress; they outlive the call that began them
        self._guards: dict[tuple[str, str, BreakerPolicy, float], tuple[Breaker, RetryBudget]] = {}
        self._tallies: dict[str, Tally] = {}
        self._proxies: dict[str, str] = {}
        self._session: aiohttp.ClientSession | None = None
        self._watch: Watch | None = None
        self._legacy: ssl.SSLContext | None = None

    def open(self) -> None:
        """Open the pool; connections are made when they are needed."""
        self._proxies = proxies_of_environment() if self.config.proxy_from_env else {}
        self._watch = Watch(asyncio.get_running_loop())
        self._session = open_session(
            connections_max=self.config.max_connections,
            per_host_max=self.config.max_connections_per_host,
            connect_timeout_s=self.config.connect_timeout,
        )

    async def close(self) -> None:
        """End the calls and renewals that are in progress, then close the pool."""
        if self._watch is not None:
            self._watch.close()  # first: aiohttp forgets the readers of the bodies that it closes
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
        """The URL's host under these settings."""
        origin = "/".join(url.split("/", 3)[:3])
        found = settings.upstreams.get(origin)
        if found is None or found.route.session is not self._session:
            if len(settings.upstreams) >= _UPSTREAMS_MAX:
                settings.upstreams.clear()
            found = settings.upstreams[origin] = self._upstream(url, settings)
        return found

    def stats(self) -> HttpStats:
        """Totals, and those of every host."""
        guards: dict[str, list[tuple[Breaker, RetryBudget]]] = {}
        for (_, host, _, _), pair in self._guards.items():
            guards.setdefault(host, []).append(pair)
        return total(
            {
                host: tally.stats((one for one, _ in guards.get(host, ())), (one for _, one in guards.get(host, ())))
                for host, tally in self._tallies.items()
            }
        )

    def _upstream(self, url: str, settings: Settings) -> Upstream:
        host = ""
        with contextlib.suppress(ValueError):  # not a URL: sending it will say so
            host = urlsplit(url).netloc.rpartition("@")[2].lower()
        policy, tokens = settings.breaker_policy, settings.retry.budget_tokens
        key = (url.partition(":")[0].lower(), host, policy, tokens)
        guard = self._guards.get(key)
        if guard is None:
            if len(self._guards) >= _UPSTREAMS_MAX:
                self._guards.pop(next(iter(self._guards)))
            guard = self._guards[key] = (Breaker(policy), RetryBudget(tokens))
        counted = host if host in self._tallies or len(self._tallies) < _UPSTREAMS_MAX else _OTHERS
        tally = self._tallies.setdefault(counted, Tally())
        session, proxy = self.session(), proxy_for(url, host, self._proxies)
        assert self._watch is not None
        route = Route(session, self._watch, self._tls(settings), proxy, self.config.max_body)
        return Upstream(host, *guard, tally, route)

    def _tls(self, settings: Settings) -> ssl.SSLContext | bool:
        """The TLS rules that apply: the caller's context, the profile's, or aiohttp's verifying default."""
        if settings.tls is not None:
            return settings.tls
        if settings.profile is not None and settings.profile.tls == "legacy_rsa":
            if self._legacy is None:
                self._legacy = legacy_rsa_context()
            return self._legacy
        return True
