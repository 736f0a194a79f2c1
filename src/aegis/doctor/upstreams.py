"""KIS, DART and Naver: does the name resolve, does TLS work, and with consent, does one request succeed."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

from aegis.config import Config
from aegis.doctor.finding import Area, Finding, Verdict
from aegis.errors import AegisError, MissingSettingError, RedisError
from aegis.http import HttpClient, Profile, legacy_rsa_context
from aegis.redis import Cache, RateLimiter, Redis
from aegis.upstream import DART_PROFILE, KIS_PROFILE, NAVER_PROFILE, DartClient, KisClient, NaverClient

_AREA = Area("upstreams")
_CONNECT_TIMEOUT_S = 5.0
_REQUEST_TIMEOUT_S = 15.0
_CERTIFICATE_DAYS_MIN = 14
_SAMSUNG, _SAMSUNG_CORP_CODE = "005930", "00126380"


@dataclass(frozen=True, slots=True)
class _Host:
    name: str
    variable: str
    url: str
    profile: Profile
    missing: str = ""  #: the variable without which this process cannot use it anyway


async def examine_upstreams(config: Config, *, request: bool) -> AsyncIterator[Finding]:
    """Opens one connection to each host; sends requests only when told to."""
    hosts = (
        _Host("KIS", "KIS_BASE_URL", config.kis.base_url, KIS_PROFILE, "" if config.kis.app_key else "KIS_APP_KEY"),
        _Host(
            "DART", "DART_BASE_URL", config.dart.base_url, DART_PROFILE, "" if config.dart.api_key else "DART_API_KEY"
        ),
        _Host("Naver", "NAVER_BASE_URL", config.naver.base_url, NAVER_PROFILE),
        _Host("Naver charts", "NAVER_CHART_URL", config.naver.chart_url, NAVER_PROFILE),
    )
    for host, finding in zip(hosts, await asyncio.gather(*map(_reach, hosts)), strict=True):
        unused = finding.verdict is Verdict.FAILED and host.missing
        yield (
            _AREA.warning(finding.check, f"{finding.seen} ({host.missing} is not set)", finding.remedy)
            if unused
            else finding
        )
    if request:
        async for finding in _requests(config):
            yield finding
    else:
        yield _AREA.skipped("requests", "not made; `aegis doctor --request` makes one to each")


async def _reach(host: _Host) -> Finding:
    """Name, connection, TLS and certificate of one host."""
    split = urlsplit(host.url)
    assert split.hostname is not None  # the registry has checked it
    name, check = split.hostname, f"{host.name} host"
    context = None
    if split.scheme == "https":
        legacy = host.profile.tls == "legacy_rsa"
        context = legacy_rsa_context() if legacy else ssl.create_default_context()
    port = split.port or (443 if context else 80)
    started = time.perf_counter()
    try:
        async with asyncio.timeout(_CONNECT_TIMEOUT_S):
            _, writer = await asyncio.open_connection(name, port, ssl=context)
    except socket.gaierror:
        return _AREA.failed(check, f"{name} cannot be resolved", f"check DNS and the network, or {host.variable}")
    except ssl.SSLCertVerificationError as exc:
        remedy = "a proxy between? Put its authority into SSL_CERT_FILE; check the clock of this machine"
        return _AREA.failed(check, f"{name}: certificate not accepted: {exc.verify_message}", remedy)
    except ssl.SSLError as exc:
        return _AREA.failed(check, f"{name}: no TLS: {exc.reason}", "upgrade OpenSSL; is that port TLS at all?")
    except TimeoutError:
        remedy = "a firewall? Allow this machine to go out to that port"
        return _AREA.failed(check, f"{name}:{port} gives no answer in {_CONNECT_TIMEOUT_S:.0f} s", remedy)
    except OSError as exc:
        return _AREA.failed(check, f"{name}:{port}: {exc.strerror or exc}", f"check the network, or {host.variable}")
    try:
        return _reached(check, name, time.perf_counter() - started, writer.get_extra_info("ssl_object"))
    finally:
        writer.transport.abort()  # nobody there has anything to say to us


def _reached(check: str, name: str, taken_s: float, tls: ssl.SSLObject | None) -> Finding:
    if tls is None:
        remedy = "use https:// for anything but a simulator: credentials go over this line"
        return _AREA.judged(check, f"{name}, {taken_s * 1e3:.0f} ms, without TLS", name != "127.0.0.1", remedy)
    certificate = tls.getpeercert() or {}
    days = int((ssl.cert_time_to_seconds(str(certificate["notAfter"])) - time.time()) // 86_400)
    seen = f"{name}, {taken_s * 1e3:.0f} ms, {tls.version()}, certificate for {days} more days"
    remedy = "the upstream must renew it; watch this line"
    return _AREA.judged(check, seen, days < _CERTIFICATE_DAYS_MIN, remedy)


async def _requests(config: Config) -> AsyncIterator[Finding]:
    """One of each upstream, through the same clients, limits and token as everybody else's."""
    if config.redis.embedded or not config.redis.enabled:
        yield _AREA.skipped("requests", "they take their permits and token from a shared Redis, and none is set")
        return
    async with AsyncExitStack() as stack:
        try:
            redis = await stack.enter_async_context(Redis(config.redis))
        except RedisError:
            yield _AREA.skipped("requests", "they take their permits and token from Redis; see there")
            return
        http = (await stack.enter_async_context(HttpClient(config.http))).without_retry()
        limiter, cache = RateLimiter(redis, config.key_prefix), Cache(redis, config.key_prefix)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "KIS": lambda: KisClient(http, limiter, cache, config.kis).price(_SAMSUNG),
            "DART": lambda: DartClient(http, limiter, cache, config.dart).company(_SAMSUNG_CORP_CODE),
            "Naver": lambda: NaverClient(http, limiter, cache, config.naver).quotes([_SAMSUNG]),
        }
        for name, call in calls.items():
            yield await _request(f"{name} request", call)


async def _request(check: str, call: Callable[[], Awaitable[object]]) -> Finding:
    started = time.perf_counter()
    try:
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            await call()
    except MissingSettingError as exc:
        return _AREA.skipped(check, f"{exc.variable} is not set")
    except TimeoutError:
        return _AREA.failed(check, f"no answer in {_REQUEST_TIMEOUT_S:.0f} s", "is its limit in use? `aegis limits`")
    except AegisError as exc:
        return _AREA.failed(check, str(exc), "see docs/upstream.md for what its codes mean")
    return _AREA.ok(check, f"answered in {(time.perf_counter() - started) * 1e3:.0f} ms, permit included")
