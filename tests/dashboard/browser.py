"""
A real Chromium without a window, driven over its debugging protocol: open a page, ask it, press keys, take pictures.

Rejected: a browser driver from a registry; each brings a browser of its own, and a few commands are all that is needed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
)  # fmt: skip
START_S = 60.0


def found() -> str | None:
    """The browser of this machine, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One open page. What it logs as an error is kept in `errors`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.errors: list[str] = []
        self.requested: list[str] = []

    async def listen(self) -> None:
        """Read what the browser says until it closes."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            elif said["method"] == "Runtime.exceptionThrown":
                self.errors.append(said["params"]["exceptionDetails"].get("exception", {}).get("description", "?"))
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.errors.append(said["params"]["entry"]["text"])
            elif said["method"] == "Network.requestWillBeSent":
                self.requested.append(said["params"]["request"]["url"])

    async def command(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        said = await answer
        assert "error" not in said, f"{method}: {said.get('error')}"
        return said["result"]

    async def ask(self, expression: str) -> Any:
        """What JavaScript says, as plain data."""
        said = await self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    async def until(self, expression: str, seconds: float = 60.0) -> Any:
        """Wait until JavaScript says something true, and return it."""
        async with asyncio.timeout(seconds):
            while not (value := await self.ask(expression)):
                await asyncio.sleep(0.1)
            return value

    async def press(self, key: str, code: int, text: str = "") -> None:
        """A key, down and up."""
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            await self.command("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **extra)

    async def look_like(self, *, width: int = 1280, height: int = 900, dark: bool = False, phone: bool = False) -> None:
        """A window of that size, on a light or dark system."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        await self.command("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.command("Emulation.setEmulatedMedia", features=features)

    async def picture(self) -> bytes:
        """What is seen, as PNG."""
        return base64.b64decode((await self.command("Page.captureScreenshot", format="png"))["data"])


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[Page]:
    """The page at that address in a browser of its own, which ends with the block."""
    program = found()
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="aegis-browser-", ignore_cleanup_errors=True) as home:
        process = await asyncio.create_subprocess_exec(
            program, *FLAGS, f"--user-data-dir={home}", "about:blank",
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            async with aiohttp.ClientSession() as session:
                address = f"http://127.0.0.1:{await _port(Path(home))}/json"
                async with session.get(address) as answer:
                    target = next(each for each in await answer.json() if each["type"] == "page")
                async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    page = Page(socket)
                    listening = asyncio.create_task(page.listen())
                    for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
                        await page.command(f"{domain}.enable")
                    await page.command("Page.navigate", url=url)
                    await page.until("location.protocol !== 'about:' && document.readyState === 'complete'")
                    yield page
                    listening.cancel()
                    await asyncio.gather(listening, return_exceptions=True)
        finally:
            process.terminate()
            try:
                async with asyncio.timeout(10):
                    await process.wait()
            except TimeoutError:
                process.kill()
                await process.wait()
            with contextlib.suppress(ProcessLookupError):  # its helpers still write into its home
                os.killpg(process.pid, signal.SIGKILL)


async def _port(home: Path) -> int:
    """The browser writes where it listens into a file."""
    async with asyncio.timeout(START_S):
        while True:
            with contextlib.suppress(FileNotFoundError, ValueError, IndexError):
                return int((home / "DevToolsActivePort").read_text().splitlines()[0])
            await asyncio.sleep(0.05)
