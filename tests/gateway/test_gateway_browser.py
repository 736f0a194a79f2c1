"""The gateway as a browser sees it: headless Chromium, a real page, WebSocket and EventSource."""

from __future__ import annotations

import asyncio
import shutil
from operator import itemgetter
from pathlib import Path

import pytest
from aiohttp import web

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
#: Collects events of both kinds until each has seen the value 2, breaks the EventSource once, and reports.
PAGE = """<!doctype html><title>quotes</title><script>
const report = {number: 0, ws: [], sse: [], ids: [], reconnects: 0};
const post = () => {
  report.number += 1;
  fetch("/report", {method: "POST", body: JSON.stringify(report)});
};
const newest = {};
const take = (kind, text) => {
  const event = JSON.parse(text);
  report[kind].push({snapshot: event.snapshot, values: Object.fromEntries(event.updates.map(u => [u.key, u.value]))});
  for (const update of event.updates) newest[kind] = update.value;
  post();
};
const ws = new WebSocket(`ws://${location.host}/quotes`);
ws.onmessage = message => take("ws", message.data);
const sse = new EventSource("/quotes");
sse.onopen = () => { report.reconnects += 1; };
sse.onmessage = message => { report.ids.push(message.lastEventId); take("sse", message.data); };
</script>"""


@pytest.mark.timeout(150)  # a browser on a busy machine
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
async def test_a_page_in_a_real_browser(bus, serve, tmp_path: Path):
    """Both transports start with the last value and follow; a broken EventSource resumes after its last id."""
    newest: dict = {"number": 0, "ws": [], "sse": []}

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def report(request: web.Request) -> web.Response:
        nonlocal newest
        newest = max(newest, await request.json(), key=itemgetter("number"))  # several connections: any order
        return web.Response()

    async def until(condition) -> dict:
        async with asyncio.timeout(60):
            while not condition(newest):
                await asyncio.sleep(0.05)
        return newest

    def values(events: list[dict]) -> list[object]:
        return [event["values"]["005930"] for event in events if "005930" in event["values"]]

    await bus.publish("005930", 1)
    await bus.flush()
    async with serve(web.get("/page", page), web.post("/report", report)) as (gateway, url):
        browser = await asyncio.create_subprocess_exec(
            CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path}", "--remote-debugging-port=0", url.replace("quotes", "page"),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            await until(lambda seen: values(seen["ws"]) == [1] and values(seen["sse"]) == [1])
            await bus.publish("005930", 2)
            await until(lambda seen: values(seen["ws"]) == [1, 2] and values(seen["sse"]) == [1, 2])
            broken = next(stream for stream in gateway._clients.values() if type(stream).__name__ == "SseStream")
            await broken.close(1013, "")
            await bus.publish("000660", 3)
            seen = await until(lambda seen: seen["reconnects"] == 2 and seen["sse"][-1]["values"] == {"000660": 3})
        finally:
            browser.kill()
            await browser.wait()
    assert [event["snapshot"] for event in seen["sse"]] == [True, *[False] * (len(seen["sse"]) - 1)]
    assert len(set(seen["ids"])) == len(seen["ids"])
