"""
The collectors of the demo on real upstreams: what one would do, and doing it.

One command is one process. Start it as often as you like, on as many hosts: limits, token, cache and topic are shared,
so several are faster at writing and survive one another, and never ask for more.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import msgspec

from aegis.config import Config
from aegis.database import MIGRATIONS
from aegis.demo._child import first_of
from aegis.demo.collector import Assignment, Collector, Counts
from aegis.errors import ConfigError, MigrationError
from aegis.redis import RateLimit
from aegis.runtime import Runtime
from aegis.upstream import DART_RATE_LIMIT, KIS_PAPER_RATE_LIMIT, KIS_RATE_LIMIT, KIS_TOKEN_RATE_LIMIT, NAVER_RATE_LIMIT

_CODE = re.compile(r"[0-9][0-9A-Z]{5}")
_NEEDED = (
    ("KIS_APP_KEY", "kis", "app_key"),
    ("KIS_APP_SECRET", "kis", "app_secret"),
    ("DART_API_KEY", "dart", "api_key"),
)
_TELL_EVERY_S = 1.0
#: Names of collectors that are told apart by their process id; what they tell stays in Redis, so there is a bound.
_NAMES = 1000


class Use(msgspec.Struct, frozen=True):
    """One upstream as it would be used."""

    name: str
    host: str
    limit: str  #: the shared limit, in words
    asks: str  #: what for, and how often


class Plan(msgspec.Struct, frozen=True):
    """What `collect` would do. Nothing in it is a secret."""

    account: str
    codes: int
    walk_s: float  #: seconds to ask for every price once, at the limit
    upstreams: tuple[Use, ...]
    writes: tuple[str, ...]
    publishes: str
    prefix: str


def checked_codes(texts: Sequence[str]) -> tuple[str, ...]:
    """
    Stock codes, each once, in order; several may stand in one text, with commas or blanks between.

    Raises:
        ValueError: names what is none, or that there is none.
    """
    codes = tuple(dict.fromkeys(code for text in texts for code in re.split(r"[,\s]+", text.strip()) if code))
    for code in codes:
        if _CODE.fullmatch(code) is None:
            raise ValueError(f"{code!r} is no stock code: six digits, such as 005930")
    if not codes:
        raise ValueError("no stock code was given, such as 005930")
    return codes


def check_settings(config: Config) -> None:
    """
    What cannot be done without, all at once.

    Raises:
        ConfigError: names every variable that is missing.
    """
    missing = [f"{name}: not set, but collect needs it" for name, section, field in _NEEDED
               if getattr(getattr(config, section), field) is None]  # fmt: skip
    if missing:
        raise ConfigError(missing)


def plan(config: Config, codes: Sequence[str]) -> Plan:
    """What would be done with this configuration; asks nobody."""
    limit = KIS_PAPER_RATE_LIMIT if config.kis.is_virtual else KIS_RATE_LIMIT
    walk_s = len(codes) * limit.rates[0].per / limit.rates[0].limit
    asks = {
        "KIS": f"prices, all the time: every code once in {walk_s:.0f} s, every eighth time its daily chart; "
        f"one token a day for all processes ({_words(KIS_TOKEN_RATE_LIMIT)}; KIS tells the owner of each issue)",
        "DART": "the list of companies once a day, today's disclosures once a minute, for all processes together",
        "Naver": "quotes of fifty codes in one request, at the interval that it publishes (7 s, after hours 70 s)",
    }
    return Plan(
        account="paper" if config.kis.is_virtual else "real",
        codes=len(codes),
        walk_s=walk_s,
        upstreams=(
            Use("KIS", _host(config.kis.base_url), _words(limit), asks["KIS"]),
            Use("DART", _host(config.dart.base_url), _words(DART_RATE_LIMIT), asks["DART"]),
            Use("Naver", _host(config.naver.base_url), _words(NAVER_RATE_LIMIT), asks["Naver"]),
        ),
        writes=("quotes", "daily_prices", "disclosures"),
        publishes="quotes",
        prefix=config.key_prefix,
    )


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def _words(limit: RateLimit) -> str:
    return f"{limit.name}: " + ", ".join(f"{rate.limit} in {rate.per:g} s" for rate in limit.rates)


async def collect(
    config: Config, codes: Sequence[str], stopping: asyncio.Event, on_progress: Callable[[Counts], None]
) -> Counts:
    """
    Collect until `stopping` is set; what is in hand then is finished and written.

    Raises:
        MigrationError: the tables are not there.
        TokenRefusedError: KIS does not accept the credentials.
    """
    async with Runtime(config, vitals=config.process or f"collector {os.getpid() % _NAMES}") as rt:
        await _check_tables(rt)
        # Where the walk begins differs by process, so that two of them do not ask for the same code at once.
        start = os.getpid() * 7 % len(codes)
        walk = (*codes[start:], *codes[:start])
        collector = Collector(rt, Assignment(0, 1, walk, polite=True), stopping)
        work = asyncio.create_task(collector.run())
        try:
            while not (await asyncio.wait((work,), timeout=_TELL_EVERY_S))[0]:
                on_progress(collector.counts)
            work.result()
            await rt.bus.flush()
        except ExceptionGroup as exc:
            raise first_of(exc) from None
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        return collector.counts


async def _check_tables(rt: Runtime) -> None:
    for each in await rt.db.migration_status(MIGRATIONS):
        if not each.applied:
            raise MigrationError(each.name, "is not applied to this database; run `aegis db migrate` first")
