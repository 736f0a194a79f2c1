"""The page in a real browser: a price changes, a limit fills, and it is fit for eyes, fingers, keys and readers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from browser import found, opened
from dashboard_scene import API_KEY, APP_KEY

from aegis.config import Config
from aegis.dashboard import Dashboard
from aegis.embedded import EmbeddedValkey, free_port
from aegis.redis import Lane
from aegis.runtime import Runtime
from aegis.telemetry import Vital, vitals_bus
from aegis.upstream import KIS_RATE_LIMIT

pytestmark = [
    pytest.mark.skipif(found() is None, reason="no Chromium on this machine"),
    pytest.mark.timeout(180),
]
PRICE = "document.querySelector('[data-code=\"005930\"] .price')?.textContent"
LIMIT = "document.querySelector('[data-limit=\"kis\"]')"
USED = f"{LIMIT}?.querySelector('[role=meter]').getAttribute('aria-valuenow')"
LANES = f"[...{LIMIT}.querySelectorAll('.lanes li')].map((li) => li.textContent).join()"
LANE = {"waiting": 0, "granted": 0, "refused": 0, "timed_out": 0, "cancelled": 0, "waited_s": 0.0}


async def test_a_price_changes_and_a_limit_fills(scene):
    """What is published is on the page a moment later; what is taken is in the window, against its ceiling."""
    await scene.quote("005930", "삼성전자", 75_800, -200)
    async with opened(scene.page.url) as page:
        await page.until(f"{PRICE} === '75,800'")
        row = await page.ask(
            "[...document.querySelectorAll('[data-code=\"005930\"] > *')].map((cell) => cell.textContent)"
        )
        assert row[:5] == ["005930", "삼성전자", "75,800", "▼ 200", "-0.26"]
        await scene.quote("005930", "삼성전자", 76_100, 100)
        await page.until(f"{PRICE} === '76,100'")
        assert await page.ask("document.querySelector('[data-code=\"005930\"] .price').dataset.way") == "up"
        points = "document.querySelector('[data-code=\"005930\"] polyline').getAttribute('points').split(' ').length"
        assert await page.ask(points) == 2

        await page.until(f"{USED} === '0'")
        async with keeping_full(scene):
            await page.until(f"{USED} === '5' && {LIMIT}.dataset.state === 'full'")
            assert (await page.ask(f"{LIMIT}.querySelector('.count').textContent")).startswith("5 of 5")
        await page.until(f"{USED} === '0'")
        await scene.rt.limiter.hold(KIS_RATE_LIMIT, 60, key=APP_KEY)
        await page.until(f"{LIMIT}.dataset.state === 'held' && {LIMIT}.textContent.includes('held by the upstream, ')")
        assert page.errors == []


@contextlib.asynccontextmanager
async def keeping_full(scene) -> AsyncIterator[None]:
    """Somebody else takes every permit of KIS at once, for as long as the block lasts."""

    async def keep_full() -> None:
        while True:
            await scene.take_permits(5)
            await asyncio.sleep(0.05)

    taking = asyncio.create_task(keep_full())
    yield
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)


async def test_who_waits_is_in_the_lane_and_a_process_that_dies_is_gone(scene):
    """Each waiter in its lane, with the process's name, for as long as it waits; a killed process waits for nothing."""
    async with opened(scene.page.url) as page:
        await page.until(f"{LIMIT}?.querySelector('.who').textContent === 'nobody waits'")
        await scene.rt.limiter.hold(KIS_RATE_LIMIT, 60, key=APP_KEY)
        lanes = (Lane.URGENT, Lane.BULK, Lane.BULK)
        waiters = [asyncio.create_task(scene.rt.limiter.wait(KIS_RATE_LIMIT, key=APP_KEY, lane=lane)) for lane in lanes]
        await page.until(f"{LANES} === 'urgent 1,normal 0,bulk 2'")
        await page.until(f"{LIMIT}.querySelector('.who').textContent.includes('waiting in collector 7: 3')")
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
        await page.until(f"{LANES} === 'urgent 0,normal 0,bulk 0'")

        async with told_by_another(scene):
            await page.until(f"{LANES} === 'urgent 0,normal 4,bulk 0'")
        killed = "[...document.querySelectorAll('#processes li')].find((li) => li.textContent.includes('killed'))"
        await page.until(f"{killed}.dataset.state === 'gone' && {LANES} === 'urgent 0,normal 0,bulk 0'")
        assert "gone; last heard" in await page.ask(f"{killed}.textContent")
        assert page.errors == []


@contextlib.asynccontextmanager
async def told_by_another(scene) -> AsyncIterator[None]:
    """Another process, in which four wait, tells so until the block is left; then it is silent, as if it was killed."""
    stats = {"limiter": {"limits": {"kis": {"lanes": {"0": LANE, "1": LANE | {"waiting": 4}, "2": LANE}}}}}
    async with vitals_bus(scene.rt.redis, scene.rt.config.key_prefix) as bus:

        async def tell() -> None:
            while True:
                await bus.publish("process:killed", Vital("killed", 1, time.time(), 0.2, stats))
                await asyncio.sleep(0.1)

        telling = asyncio.create_task(tell())
        yield
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


async def test_everything_else_is_shown_and_nothing_comes_from_elsewhere(scene, config):
    """Servers, process, cache, pool; every request goes to the page's own host; the browser has no secret."""
    await scene.rt.cache.set("stock", 1)
    await scene.rt.cache.get("stock", int)
    await scene.rt.db.fetch_value("select 1")
    async with opened(scene.page.url) as page:
        await page.until("document.querySelectorAll('#servers li[data-state=good]').length === 2")
        await page.until("document.getElementById('processes').textContent.includes('collector 7')")
        await page.until("document.getElementById('cache').textContent.includes('hit rate')")
        await page.until("/at most ?3/.test(document.getElementById('pool').innerText.replaceAll('\\n', ' '))")
        await page.until("document.getElementById('status').dataset.state === 'live'")
        assert {url.split("/", 3)[2] for url in page.requested} == {scene.page.url.split("/")[2]}
        streams = await page.ask("fetch('state.json').then((answer) => answer.text())")
        shown = await page.ask("document.documentElement.outerHTML")
        for secret in (APP_KEY, API_KEY):
            assert secret not in streams + shown
        assert page.errors == []


async def test_the_page_says_when_it_is_not_live(config):
    """Waiting before, lost after, live again by itself; and when everybody has ended, their last words stay."""
    status = "document.getElementById('status').dataset.state"
    async with Dashboard(0) as dashboard, opened(dashboard.url) as page:
        await page.until("document.getElementById('status').textContent === 'waiting for the servers'")
        async with dashboard.live(config):
            await page.until(f"{status} === 'live'")
        await page.until(f"{status} === 'lost'")
        async with dashboard.live(config):
            await page.until(f"{status} === 'live'")
            async with Runtime(config, database=False, vitals="collector 8") as rt:
                await rt.cache.get("nothing", int)
            await page.until("document.querySelector('#processes li')?.dataset.state === 'ended'")
        await page.until(f"{status} === 'ended'")
        await page.until("document.getElementById('cache').innerText.replace(/\\s+/g, ' ').includes('misses 1 ')")


async def test_an_outage_of_redis_is_seen_and_so_is_its_end(variables):
    """The values may be old, says the status; the server is named with its problem; then all is well again."""
    bad = "document.querySelector('#servers li[data-state=bad]')?.textContent"
    both_good = "document.querySelectorAll('#servers li[data-state=good]').length === 2"
    with EmbeddedValkey(port=free_port()) as server:  # at the same address after its restart
        config = Config.load({**variables, "REDIS_URL": server.url}, env_file=None)
        async with Dashboard(0) as dashboard, dashboard.live(config), opened(dashboard.url) as page:
            await page.until(both_good)
            server.kill()
            await page.until("document.getElementById('status').dataset.state === 'stale'")
            await page.until(f"{bad}?.includes('Valkey / Redis')")
            server.start()
            await page.until("document.getElementById('status').dataset.state === 'live'")
            await page.until(both_good)


async def test_it_is_fit_for_keys_and_readers(scene):
    """The filter and the pause work from the keyboard; everything that can be operated or measured has a name."""
    for code, name in (("005930", "삼성전자"), ("000660", "SK하이닉스")):
        await scene.quote(code, name, 100, 0)
    async with opened(scene.page.url) as page:
        await page.until("document.querySelectorAll('#book tr').length === 2")
        order = []
        for _ in range(4):
            await page.press("Tab", 9)
            order.append(await page.ask("document.activeElement.id || document.activeElement.className"))
        assert order[:2] == ["skip", "pause"]
        await page.ask("document.getElementById('filter').focus()")
        await page.command("Input.insertText", text="하이닉스")
        await page.until("document.getElementById('shown').textContent === '1 of 2'")
        await page.ask("document.getElementById('pause').focus()")
        await page.press("Enter", 13, "\r")
        assert await page.ask("document.getElementById('pause').getAttribute('aria-pressed')") == "true"
        await scene.quote("000660", "SK하이닉스", 200, 100)
        await asyncio.sleep(0.5)
        price = "document.querySelector('[data-code=\"000660\"] .price').textContent"
        assert await page.ask(price) == "100"
        await page.press("Enter", 13, "\r")
        await page.until(f"{price} === '200'")

        await page.until(f"!!{LIMIT}")
        nodes = (await page.command("Accessibility.getFullAXTree"))["nodes"]
        for role in ("button", "searchbox", "meter", "table", "region", "image"):
            named = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == role]
            assert named or role in {"image", "table"}, role
            assert all(named) or role == "table", (role, named)
        headings = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "heading"]
        assert headings[:2] == ["aegis", "Limits"]
        assert await page.ask("document.documentElement.lang") == "en"
        assert await page.ask("document.querySelector('[data-code=\"005930\"] td').lang") == "ko"


async def test_light_and_dark_wide_and_narrow(scene):
    """Text stands out from its ground on both, and a phone scrolls down, not sideways."""
    await scene.quote("005930", "삼성전자", 75_800, -200)
    async with opened(scene.page.url) as page:
        await page.until(PRICE)
        grounds = []
        for dark in (False, True):
            await page.look_like(dark=dark)
            for part in ("h1", ".hint", "[data-code] .price", "#shown"):
                assert await page.ask(CONTRAST % part) >= 4.5, (part, dark)
            grounds.append(await page.ask("getComputedStyle(document.body).backgroundColor"))
        assert grounds[0] != grounds[1]
        await page.look_like(width=360, height=740, phone=True)
        assert await page.ask("document.documentElement.scrollWidth") <= 360
        heights = "[...document.querySelectorAll('button, input')].map((each) => each.getBoundingClientRect().height)"
        assert min(await page.ask(heights)) >= 40


#: The contrast of an element's text to what is behind it, as WCAG 2 computes it.
CONTRAST = """(() => {
  const light = ([r, g, b]) => [r, g, b].map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const element = document.querySelector(`%s`);
  let behind = element;
  while (behind && (numbers(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
  const text = light(numbers(getComputedStyle(element).color));
  const ground = light(numbers(getComputedStyle(behind).backgroundColor));
  return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
})()"""
