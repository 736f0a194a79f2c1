"""KIS, DART and Naver through the real HTTP client, against the simulator, with real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from typing import NamedTuple

import pytest

from aegis.config import DartConfig, HttpConfig, KisConfig, NaverConfig
from aegis.errors import HttpError, MissingSettingError, RejectedError
from aegis.http import HttpClient
from aegis.http.profile import Request, Response
from aegis.redis import Cache, Rate, RateLimit, RateLimiter
from aegis.upstream import DartClient, KisClient, NaverClient
from aegis.upstream import dart as dart_module
from aegis.upstream import kis as kis_module
from aegis.upstream import naver as naver_module
from aegis.upstream.naver import parse_chart
from aegis.upstream.simulator import Rules, Simulator

DATA = Path(__file__).parents[3] / "shared" / "data"


class World(NamedTuple):
    simulator: Simulator
    http: HttpClient
    limiter: RateLimiter
    cache: Cache
    kis: KisConfig

    def client(self, limit: RateLimit | None = None) -> KisClient:
        return KisClient(self.http, self.limiter, self.cache, self.kis, limit)


@pytest.fixture
async def world(redis) -> AsyncIterator[World]:
    async with Simulator() as simulator, HttpClient(HttpConfig()) as http:
        kis = KisConfig(app_key="key-of-a-test", app_secret="secret-of-a-test", base_url=simulator.url)
        yield World(simulator, http, RateLimiter(redis), Cache(redis), kis)


async def test_price_and_chart_are_typed(world):
    """Strings on the wire, numbers and dates here."""
    price = await world.client().price("005930")
    assert price.code == "005930"
    assert price.low <= price.price <= price.high
    last = world.simulator.market.last_day
    bars = await world.client().daily_chart("005930", date(2026, 1, 1), last)
    assert [bar.date for bar in bars] == sorted(bar.date for bar in bars)
    assert bars[-1].date == last


async def test_many_clients_issue_one_token(world):
    """Twenty clients at once, one issue."""
    clients = [world.client(RateLimit("wide", Rate(1000, per=1))) for _ in range(20)]
    assert len(set(await asyncio.gather(*(client.token() for client in clients)))) == 1
    assert world.simulator.report()["tokens_issued"] == 1
    assert world.simulator.report()["tokens_refused"] == 0


async def test_voided_token_is_replaced_once_and_never_a_newer_one(redis):
    """Maintenance voids all tokens: everybody notices, one issue follows, every call succeeds."""
    async with Simulator(rules=Rules(token_interval_s=0, kis_per_second=1000)) as simulator, HttpClient() as http:
        config = KisConfig(app_key="k" * 8, app_secret="s" * 8, base_url=simulator.url)
        wide = RateLimit("wide", Rate(1000, per=1))
        clients = [KisClient(http, RateLimiter(redis), Cache(redis), config, wide) for _ in range(5)]
        await asyncio.gather(*(client.price("005930") for client in clients))
        simulator.state.tokens.void()
        await redis.execute("DEL", *await redis.execute("KEYS", "aegis:limit:*kis-token*"))
        await asyncio.gather(*(client.price("005930") for client in clients))
        assert simulator.report()["tokens_issued"] == 2


async def test_simulator_refuses_what_kis_refuses_and_we_stay_below(world):
    """Without a limiter the sixth request of a second is refused; with it none is."""
    client = world.client()
    await asyncio.gather(*(client.price("005930") for _ in range(12)))
    report = world.simulator.report()["kis"]
    assert (report["rejected"], report["worst_window"]) == (0, 5)
    wide = world.client(RateLimit("too-wide", Rate(1000, per=1)))
    await asyncio.gather(*(wide.price("005930") for _ in range(8)), return_exceptions=True)
    assert world.simulator.report()["kis"]["rejected"] > 0


async def test_dart_lists_and_empty_is_not_an_error(world):
    """013 is an empty list."""
    client = DartClient(
        world.http, world.limiter, world.cache, DartConfig(api_key="k" * 40, base_url=world.simulator.url)
    )
    found = await client.disclosures(date(2026, 1, 1), date(2026, 2, 20))
    assert found
    assert {item.rcept_dt.year for item in found} == {2026}
    assert await client.disclosures(date(1999, 1, 1), date(1999, 1, 2)) == []
    with pytest.raises(RejectedError, match="100"):
        await client.disclosures(date(2020, 1, 1), date(2026, 1, 1), page=1)


async def test_naver_quotes_need_a_user_agent_and_ours_has_one(world):
    """Without one, the page that says 200 and means no is an error with an excerpt; with ours, quotes."""
    client = NaverClient(world.http, world.limiter, world.cache, NaverConfig(base_url=world.simulator.url))
    [samsung] = await client.quotes(["005930", "999999"])
    assert (samsung.code, samsung.name) == ("005930", "삼성전자")
    assert client.polling_interval_s == 7.0
    bare = world.http.without_retry().with_profile(naver_module.NAVER_PROFILE)
    with pytest.raises(HttpError, match="page"):
        await bare.get(f"{world.simulator.url}/api/realtime/domestic/stock/005930", headers={"User-Agent": ""})


def answer(status: int, body: bytes) -> Response:
    return Response(status, {}, body)


ASKED = Request("GET", "https://upstream/", {})


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (500, b'{"rt_cd":"1","msg_cd":"EGW00201","msg1":"x"}', "Throttled"),
        (200, b'{"rt_cd":"1","msg_cd":"EGW00201","msg1":"x"}', "Throttled"),
        (500, b'{"rt_cd":"1","msg_cd":"EGW00215","msg1":"x"}', "Throttled"),
        (500, b'{"rt_cd":"1","msg_cd":"EGW00123","msg1":"x"}', "Reauth"),
        (200, b'{"rt_cd":"1","msg_cd":"EGW00121","msg1":"x"}', "Reauth"),
        (500, b'{"rt_cd":"1","msg_cd":"EGW00301","msg1":"x"}', "Ambiguous"),
        (500, b'{"rt_cd":"1","msg_cd":"EGW00302","msg1":"x"}', "Ambiguous"),
        (500, b'{"rt_cd":"1","msg_cd":"","msg1":""}', "Transient"),
        (500, b'{"rt_cd":"1","msg_cd":"EGW02004","msg1":"x"}', "Rejected"),
        (403, b'{"error_code":"EGW00133","error_description":"x"}', "Rejected"),
        (200, b'{"rt_cd":"0","msg_cd":"MCA00000","msg1":"x   "}', "Ok"),
        (200, b'{"access_token":"t"}', "Ok"),
        (200, b"<html>", "Transient"),
        (502, b"", "Transient"),
        (404, b"", "Rejected"),
    ],
)
def test_kis_answers_mean_what_they_say(status, body, verdict):
    """The body decides, whatever the status."""
    assert type(kis_module.classify(ASKED, answer(status, body))).__name__ == verdict


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        (b'{"status":"000","message":"x"}', "Ok"),
        (b'{"status":"013","message":"x"}', "Empty"),
        (b'{"status":"020","message":"x"}', "Throttled"),
        (b'{"status":"800","message":"x"}', "Transient"),
        (b'{"status":"010","message":"x"}', "Rejected"),
        (b"PK\x03\x04rest", "Ok"),
        (b"<html>", "Transient"),
    ],
)
def test_dart_answers_mean_what_they_say(body, verdict):
    """HTTP always says 200; a ZIP is known by its first bytes."""
    assert type(dart_module.classify(ASKED, answer(200, body))).__name__ == verdict


@pytest.mark.parametrize("missing", ["app_key", "app_secret"])
def test_missing_credentials_name_their_variable(world_config, missing):
    """The error names the variable to set."""
    config = world_config.model_copy(update={missing: None})
    with pytest.raises(MissingSettingError, match=f"KIS_{missing.upper()}"):
        KisClient(None, None, None, config)


@pytest.fixture
def world_config() -> KisConfig:
    return KisConfig(app_key="k", app_secret="s")


def test_recorded_chart_of_naver_decodes():
    """A real body: EUC-KR by its prolog, 2,832 bars."""
    path = DATA / "naver_fchart_005930_day.xml"
    if not path.exists():
        pytest.skip("the recorded body is not here")
    bars = parse_chart(Response(200, {}, path.read_bytes()).text())
    assert len(bars) == 2832
    assert (bars[0].date, bars[0].close) == (date(2014, 7, 11), 25680)
