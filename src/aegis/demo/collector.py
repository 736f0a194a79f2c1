"""
A collector as people run it, one of several on the same keys: token, prices, disclosures, quotes; cache, table, topic.

Every collector walks all codes, each from another place, and asks the cache before the upstream: what a sibling loaded
a moment ago is a hit. So the work spreads by itself, also when a sibling dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import partial

import msgspec

from aegis.config import Config
from aegis.demo._child import Parent, run_child
from aegis.errors import HttpError, RateLimitTimeoutError, TokenRefusedError
from aegis.redis import Cache, RateLimiter
from aegis.runtime import Runtime
from aegis.telemetry import configure_logging, secrets_of
from aegis.upstream import DailyBar, Disclosure, NaverQuote, StockPrice
from aegis.upstream._shape import KST
from aegis.upstream.dart import DartClient
from aegis.upstream.kis import KisClient
from aegis.upstream.naver import NaverClient

log = logging.getLogger("aegis.demo")

#: How long a price is served to siblings before it is asked for again: half of what the quota needs for all codes, so
#: that there are always stale ones to ask for.
_PRICE_TTL_WALKS = 0.5
#: Tasks per process that wait for a price: enough to keep the quota busy when one of them writes.
_PRICE_TASKS = 3
#: Every so many prices, a daily chart.
_CHART_EVERY = 8
_CHART_DAYS = 60
_WRITE_EVERY_S = 0.5
#: Codes in one request to Naver, and the least interval between two; it publishes 7 s, and 70 s after hours.
_NAVER_CODES = 50
_NAVER_INTERVAL_S = 7.0
_NEWS_EVERY_S = 60.0
_AFTER_A_HIT_MAX_S = 0.05
#: After a failure, however it is put.
_PAUSE_MIN_S, _PAUSE_MAX_S = 0.2, 60.0
_TELL_EVERY_S = 0.25


class Assignment(msgspec.Struct, frozen=True):
    """What the demo tells one collector."""

    index: int  #: which collector this is
    processes: int  #: how many there are
    codes: tuple[str, ...]  #: the codes that all of them walk
    day: date | None = None  #: the newest day that the upstreams know; None: today, in Korea
    shared: bool = True  #: False: limit and cache, and with it the token, are this process's own
    polite: bool = False  #: real upstreams: no more of DART and Naver than there is news


class Quote(msgspec.Struct, frozen=True):
    """What is broadcast: one price of one code, from one source."""

    code: str
    price: int
    change: int
    volume: int
    source: str
    observed_at: datetime
    name: str = ""  #: as the company is listed, where that is known


class Counts(msgspec.Struct):
    """What this collector has done so far."""

    prices: int = 0
    failures: int = 0
    ticks_published: int = 0
    rows_inserted: int = 0
    rows_updated: int = 0
    rows_unchanged: int = 0


class Collector:
    """The work of one process. Every loop ends by itself, with its last item whole, once `stopping` is set."""

    def __init__(self, rt: Runtime, assignment: Assignment, stopping: asyncio.Event) -> None:
        self._rt, self._stopping, self._assignment = rt, stopping, assignment
        limiter, self.cache = rt.limiter, rt.cache
        if not assignment.shared:
            own = f"{rt.config.key_prefix}-{assignment.index}"
            limiter, self.cache = RateLimiter(rt.redis, prefix=own), Cache(rt.redis, prefix=own)
        self._kis = KisClient(rt.http, limiter, self.cache, rt.config.kis)
        self._dart = DartClient(rt.http, limiter, self.cache, rt.config.dart)
        self._naver = NaverClient(rt.http, limiter, self.cache, rt.config.naver)
        self._quotes: dict[str, Quote] = {}
        self._names: dict[str, str] = {}
        self._asking: set[asyncio.Task[object]] = set()
        rate = self._kis.limit.rates[0]
        self._price_ttl_s = _PRICE_TTL_WALKS * len(assignment.codes) * rate.per / rate.limit
        self.counts = Counts()

    async def run(self) -> None:
        """Work until told to stop; the first error of any loop ends all of them."""
        async with self._going_on():  # one request for the whole fleet: the list of companies is cached for a day
            codes = await self._dart.corp_codes()
            self._names = {each.stock_code: each.corp_name for each in codes if each.stock_code}
        async with asyncio.TaskGroup() as tasks:
            for task in range(_PRICE_TASKS):
                tasks.create_task(self._prices(self._walk(task)))
            polite = self._assignment.polite
            tasks.create_task(self._naver_at_its_interval() if polite else self._naver_quotes())
            tasks.create_task(self._news() if polite else self._disclosures())
            tasks.create_task(self._write_quotes())
        if self._asking:
            await asyncio.wait(self._asking)
        await self._flush()  # what the last ones brought after the writer had stopped

    def _walk(self, task: int) -> Iterator[str]:
        """All codes, for ever, from a place of its own."""
        codes = self._assignment.codes
        walkers = self._assignment.processes * _PRICE_TASKS
        start = (self._assignment.index * _PRICE_TASKS + task) * len(codes) // walkers
        return itertools.cycle(codes[start:] + codes[:start])

    async def _prices(self, codes: Iterator[str]) -> None:
        asked = 0
        while not self._stopping.is_set():
            code = next(codes)
            async with self._going_on():
                if await self._price(code):
                    asked += 1
                    if asked % _CHART_EVERY == 0:
                        await self._chart(code)

    async def _price(self, code: str) -> bool:
        """Whether it had to be asked for; a sibling may have just done so."""
        loaded = False

        async def load() -> StockPrice:
            nonlocal loaded
            loaded = True
            return await self._asked_price(code)

        await self.cache.get_or_set(f"price:{code}", load, StockPrice, ttl=self._price_ttl_s)
        if not loaded:
            await asyncio.sleep(min(self._price_ttl_s / 20, _AFTER_A_HIT_MAX_S))  # a hit alone would be a busy loop
        return loaded

    async def _asked_price(self, code: str) -> StockPrice:
        """Whoever asks also publishes; it may be the cache, ahead of time and in a task of its own."""
        task = asyncio.current_task()
        assert task is not None
        self._asking.add(task)
        try:
            price = await self._kis.price(code)
            self.counts.prices += 1
            name, now = self._names.get(code, ""), datetime.now(UTC)
            await self._publish(Quote(code, price.price, price.change, price.volume, "kis", now, name))
            return price
        finally:
            self._asking.discard(task)

    async def _chart(self, code: str) -> None:
        day = self._assignment.day or _today()
        bars = await self._kis.daily_chart(code, day - timedelta(days=_CHART_DAYS), day)
        await self._upsert("daily_prices", [_bar_row(code, bar) for bar in bars], key=("code", "date"))

    async def _naver_quotes(self) -> None:
        for code in self._walk(0):
            if self._stopping.is_set():
                return
            async with self._going_on():
                for quote in await self._naver.quotes([code]):
                    await self._publish(_naver_row(quote))

    async def _naver_at_its_interval(self) -> None:
        """All codes, fifty to a request, as often as Naver publishes; one process of the fleet asks for each."""
        codes = self._assignment.codes
        chunks = [codes[start : start + _NAVER_CODES] for start in range(0, len(codes), _NAVER_CODES)]
        interval_s = _NAVER_INTERVAL_S
        while not self._stopping.is_set():
            for chunk in chunks:
                async with self._going_on():
                    await self.cache.get_or_set(
                        f"naver-asked:{chunk[0]}:{len(chunk)}", partial(self._naver_chunk, chunk), ttl=interval_s
                    )
            interval_s = max(_NAVER_INTERVAL_S, self._naver.polling_interval_s)
            await self._stopped_within(interval_s)

    async def _naver_chunk(self, codes: Sequence[str]) -> int:
        quotes = await self._naver.quotes(codes)
        for quote in quotes:
            await self._publish(_naver_row(quote))
        return len(quotes)

    async def _news(self) -> None:
        """Today's disclosures, once a minute for the whole fleet: 1,440 of the 20,000 requests of a day, and pages."""
        while not self._stopping.is_set():
            async with self._going_on():
                await self.cache.get_or_set("disclosures-asked", self._todays, ttl=_NEWS_EVERY_S)
            await self._stopped_within(_NEWS_EVERY_S)

    async def _todays(self) -> int:
        found = await self._dart.disclosures(_today(), _today())
        await self._upsert("disclosures", [_disclosure_row(item) for item in found], key=("rcept_no",))
        return len(found)

    async def _disclosures(self) -> None:
        """Poll at this process's share of the limit: whoever takes 100 permits at once leaves a minute of silence."""
        day, pause_s = self._assignment.day or _today(), self._assignment.processes * 60 / 100
        page = self._assignment.index
        while not await self._stopped_within(pause_s):
            page = page % 10 + 1
            async with self._going_on():
                found = await self._dart.disclosures(day - timedelta(days=_CHART_DAYS), day, page=page)
                await self._upsert("disclosures", [_disclosure_row(item) for item in found], key=("rcept_no",))

    @contextlib.asynccontextmanager
    async def _going_on(self) -> AsyncIterator[None]:
        """
        A request that failed for good is counted and logged; the collector goes on with the next, after a pause.

        Only wrong credentials end it: no waiting helps, and every request more is one with a wrong key.
        """
        try:
            yield
        except (HttpError, RateLimitTimeoutError) as exc:
            if isinstance(exc, TokenRefusedError) and exc.retry_after is None:
                raise
            self.counts.failures += 1
            log.warning("request failed: %s", exc)
            pause_s = exc.retry_after if isinstance(exc, HttpError) else exc.retry_after_s
            await self._stopped_within(min(max(pause_s or 0.0, _PAUSE_MIN_S), _PAUSE_MAX_S))

    async def _publish(self, quote: Quote) -> None:
        self._quotes[quote.code] = quote
        await self._rt.bus.publish(quote.code, quote)
        self.counts.ticks_published += 1

    async def _write_quotes(self) -> None:
        """Write the newest quote of every code that moved, in batches."""
        while not await self._stopped_within(_WRITE_EVERY_S):
            await self._flush()

    async def _flush(self) -> None:
        quotes, self._quotes = self._quotes, {}
        await self._upsert("quotes", [_quote_row(quote) for quote in quotes.values()], key=("code",))

    async def _upsert(self, table: str, rows: Sequence[dict[str, object]], key: tuple[str, ...]) -> None:
        if not rows:
            return
        result = await self._rt.db.upsert(table, rows, key=key)
        self.counts.rows_inserted += result.inserted
        self.counts.rows_updated += result.updated
        self.counts.rows_unchanged += result.unchanged

    async def _stopped_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
        return self._stopping.is_set()


def _today() -> date:
    return datetime.now(UTC).astimezone(KST).date()


def _bar_row(code: str, bar: DailyBar) -> dict[str, object]:
    return {"code": code, **msgspec.structs.asdict(bar)}


def _quote_row(quote: Quote) -> dict[str, object]:
    row = msgspec.structs.asdict(quote)
    del row["name"]  # the table of companies is another one
    return row


def _naver_row(quote: NaverQuote) -> Quote:
    return Quote(quote.code, quote.price, quote.change, quote.volume, "naver", datetime.now(UTC), quote.name)


def _disclosure_row(item: Disclosure) -> dict[str, object]:
    return msgspec.structs.asdict(item)


async def collect(parent: Parent) -> None:
    """Open every room, work until told to stop, tell how far it is on the way, and close in order."""
    assignment = msgspec.json.decode(sys.argv[1], type=Assignment)
    config = Config.load(env_file=None)
    configure_logging(config.log, process=config.process, secrets=secrets_of(config))
    async with Runtime(config, vitals=f"collector {assignment.index}") as rt:
        collector = Collector(rt, assignment, parent.stopping)
        parent.tell("ready")

        def tell(kind: str) -> None:
            cache = collector.cache.stats()
            use = {"hits": cache.hits, "misses": cache.misses, "loads": cache.loads}
            parent.tell(kind, **msgspec.structs.asdict(collector.counts), cache=use)

        work = asyncio.create_task(collector.run())
        while not (await asyncio.wait((work,), timeout=_TELL_EVERY_S))[0]:
            tell("progress")
        work.result()
        await rt.bus.flush()
        tell("final")


if __name__ == "__main__":
    run_child(collect)
