"""What the page is served from: who may read, what is told, what is remembered, and how it begins and ends."""

from __future__ import annotations

import asyncio
import json
import re

import aiohttp
import pytest
from dashboard_scene import API_KEY, APP_KEY, OWN

from aegis.dashboard import Dashboard
from aegis.dashboard.history import History
from aegis.dashboard.watch import limits_of
from aegis.errors import PortTakenError
from aegis.runtime import Runtime


async def get(url: str, **headers: str) -> tuple[int, aiohttp.typedefs.LooseHeaders, str]:
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        return answer.status, answer.headers, await answer.text()


async def state(page: Dashboard) -> dict:
    return json.loads((await get(f"{page.url}state.json"))[2])


async def until(page: Dashboard, holds) -> dict:
    async with asyncio.timeout(30):
        while not holds(seen := await state(page)):
            await asyncio.sleep(0.05)
        return seen


async def test_before_it_is_live_the_page_is_there_and_says_so():
    """The page can be opened at once; the streams ask to come back."""
    async with Dashboard(0) as page:
        status, headers, text = await get(page.url)
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert "waiting for the servers" in text
        assert await state(page) == {}
        status, headers, _ = await get(f"{page.url}live/quotes")
        assert (status, headers["Retry-After"]) == (503, "1")
        await page.tell("run", {"elapsed_s": 1})  # nobody looks, so nothing happens


async def test_scripts_and_styles_come_from_here_and_nowhere_else():
    """The policy allows nothing inline and nothing foreign; the page has neither."""
    async with Dashboard(0) as page:
        _, headers, text = await get(page.url)
        assert "script-src 'self'; style-src 'self'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        for forbidden in ("http://", "https://", "<style", "style=", "onclick"):
            assert forbidden not in text
        linked = {name for name in re.findall(r'(?:src|href)="([^#"]+)"', text) if not name.startswith("data:")}
        assert {"app.js", "style.css"} <= linked
        while linked:
            status, headers, script = await get(f"{page.url}{linked.pop()}")
            assert (status, headers["X-Content-Type-Options"]) == (200, "nosniff")
            assert "https://" not in script
            linked |= set(re.findall(r'from "\./([^"]+)"', script))
        assert (await get(f"{page.url}secrets.txt"))[0] == 404


async def test_other_peoples_pages_may_not_read(scene):
    """A name that was made to lead here, a page from elsewhere: 403, whatever is asked for."""
    port = scene.page.url.rpartition(":")[2]
    for path in ("", "state.json", "live/quotes"):
        assert (await get(f"{scene.page.url}{path}", Host=f"evil.example:{port}".rstrip("/")))[0] == 403
        assert (await get(f"{scene.page.url}{path}", Origin="https://evil.example"))[0] == 403


async def test_limits_servers_and_processes_are_told(scene):
    """Each with its numbers; no account, no key."""
    await scene.take_permits(3)
    seen = await until(scene.page, lambda seen: {"limits", "servers", "process:collector 7"} <= seen.keys())
    assert [limit["label"] for limit in seen["limits"]][:2] == ["KIS 한국투자증권", "DART 전자공시"]
    assert seen["limits"][-1]["label"] == "orders"
    await scene.rt.limiter.allow(OWN, key=APP_KEY)
    await until(scene.page, lambda seen: seen["limits"][-1]["used"] == 1)
    assert {name: server["ok"] for name, server in seen["servers"].items()} == {
        "Valkey / Redis": True,
        "PostgreSQL": True,
    }
    process = seen["process:collector 7"]
    assert process["stats"].keys() == {"redis", "limiter", "cache", "bus", "http", "db"}
    assert process["ended"] is False
    for secret in (APP_KEY, API_KEY):
        assert secret not in json.dumps(seen)


async def test_a_window_fills_and_empties(scene):
    """As the limit does."""

    def used(seen: dict) -> int | None:
        return next((limit["used"] for limit in seen.get("limits", ()) if limit["name"] == "kis"), None)

    await until(scene.page, lambda seen: used(seen) == 0)
    full = asyncio.create_task(keep_full(scene))
    await until(scene.page, lambda seen: used(seen) == 5)
    full.cancel()
    await until(scene.page, lambda seen: used(seen) == 0)


async def keep_full(scene) -> None:
    while True:
        await scene.take_permits(5)
        await asyncio.sleep(0.02)


async def test_a_process_that_leaves_says_so(scene, config):
    """In order: ended. What it told stays to be looked at."""
    async with Runtime(config, database=False, vitals="collector 8"):
        await until(scene.page, lambda seen: not seen.get("process:collector 8", {"ended": True})["ended"])
    await until(scene.page, lambda seen: seen["process:collector 8"]["ended"])


async def test_a_page_that_is_opened_late_has_its_charts(scene):
    """The prices so far, oldest first, each change once."""
    for price in (100, 101, 101, 99):
        await scene.quote("005930", "삼성전자", price, 0)
        await scene.rt.bus.flush()
        async with asyncio.timeout(20):
            while scene.page._live.history.as_data(0.0)["prices"].get("005930", [None])[-1] != price:
                await asyncio.sleep(0.02)
    await scene.take_permits(5)
    await until(scene.page, lambda seen: any(limit["name"] == "kis" for limit in seen.get("limits", ())))
    seen = json.loads((await get(f"{scene.page.url}history.json"))[2])
    assert seen["prices"] == {"005930": [100, 101, 99]}
    assert {"kis", "dart", "naver"} <= seen["limits"].keys()
    assert all(age >= 0 and 0 <= share <= 1 for shares in seen["limits"].values() for age, share in shares)


def test_history_is_bounded_and_takes_what_is_a_price():
    """The newest sixty of at most five thousand keys; other shapes are not charted."""
    history = History()
    for price in range(100):
        history.note("a", {"price": price})
    for value in (None, 5, {"bid": 1}, {"price": "12"}):
        history.note("b", value)
    for number in range(6000):
        history.note(f"key {number}", {"price": 1})
    data = history.as_data(0.0)["prices"]
    assert data["a"] == list(range(40, 100))
    assert "b" not in data
    assert len(data) == 5000


def test_the_history_of_a_limit_is_the_last_minute_and_what_held_before():
    """Each change once, with its age; of those before, only the one that the minute begins with."""
    history = History()
    for at, used in ((0, 1), (10, 2), (30, 2), (50, 4), (100, 0)):
        history.note_limits([{"name": "mine", "used": used, "limit": 4}], now=at)
    assert history.as_data(now=105)["limits"] == {"mine": [(95, 0.5), (55, 1.0), (5, 0.0)]}


def test_paper_accounts_show_their_own_limit(config):
    """1/s, and it says so."""
    paper = config.model_copy(update={"kis": config.kis.model_copy(update={"is_virtual": True})})
    [first, *_] = limits_of(paper)
    assert (first.label, first.limit.rates[0].limit) == ("KIS 한국투자증권 모의투자", 1)


async def test_a_taken_port_is_one_clear_error():
    """Which port, and what to do."""
    async with Dashboard(0) as page:
        port = int(page.url.rpartition(":")[2].rstrip("/"))
        with pytest.raises(PortTakenError, match=f"dashboard cannot listen on port {port}"):
            async with Dashboard(port):
                pass
