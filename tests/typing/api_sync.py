"""`aegis.sync` as a type checker sees it: the async types without what is awaited."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, assert_type

from aegis import Config, sync
from aegis.database import UpsertResult
from aegis.http import Response
from aegis.redis import Decision, Gap, Rate, RateLimit, Update
from aegis.upstream import NaverQuote, StockPrice

LIMIT = RateLimit("typed", Rate(1, per=1))


@dataclass
class Quote:
    """A row, a cached value."""

    code: str
    price: int


def use(config: Config, kis: sync.KisClient, naver: sync.NaverClient) -> None:
    """Nothing of this is run."""
    with sync.Runtime(config) as rt:
        assert_type(rt, sync.Runtime)
        assert_type(rt.redis.ping(), float)
        assert_type(rt.limiter.allow(LIMIT), Decision)
        assert_type(rt.cache.get("k", Quote), Quote | None)
        assert_type(rt.cache.get_or_set("k", lambda: Quote("005930", 1), Quote, ttl=60), Quote)
        assert_type(rt.db.fetch("select 1", type=Quote), list[Quote])
        assert_type(rt.db.upsert("quotes", [], key=("code",)), UpsertResult)
        assert_type(rt.db.run_tx(lambda tx: tx.execute("select 1")), str)
        assert_type(rt.db.iterate("select 1", type=Quote), sync.Stream[Quote])
        with rt.db.transaction() as tx:
            assert_type(tx, sync.Transaction)
            assert_type(tx.fetch_one("select 1", type=Quote), Quote | None)
        paid = rt.http.with_rate_limiter(rt.limiter, LIMIT)
        assert_type(paid.get("http://x"), Response)
        with rt.bus.subscribe("005930", type=int) as updates:
            assert_type(next(updates), Update | Gap)
    assert_type(kis.price("005930"), StockPrice)
    assert_type(naver.watch(["005930"]), Iterator[list[NaverQuote]])


def misuse(cache: sync.Cache) -> Any:
    """What may be missing must be looked at."""
    return cache.get("k", Quote).price  # type: ignore[union-attr]
