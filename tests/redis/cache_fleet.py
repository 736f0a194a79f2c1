"""Several real processes that use one cache: `with Fleet(url) as fleet: worker = fleet.start(JOB)`.

A job is the source of `async def job(cache, redis, say, told)`: `say(x)` sends a JSON line to the test, `await told()`
waits for a line from it.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from typing import Any, Self

_MAIN = """
import asyncio, json, os, sys, threading
import msgspec
from aegis.config import RedisConfig
from aegis.redis import Cache, Redis

class Stock(msgspec.Struct, frozen=True):
    code: str
    price: int

def say(value):
    sys.stdout.write(json.dumps(value) + "\\n")
    sys.stdout.flush()

async def main():
    loop, lines = asyncio.get_running_loop(), asyncio.Queue()
    def read():
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, json.loads(line))
    threading.Thread(target=read, daemon=True).start()
    async with Redis(RedisConfig(url=sys.argv[1])) as redis:
        cache = Cache(redis, **json.loads(sys.argv[2]))
        await job(cache, redis, say, lines.get)

{job}

asyncio.run(main())
"""

#: A job: loads, and brings what it is told.
LEADER = """
async def job(cache, redis, say, told):
    async def load():
        say("loading")
        return await told()
    say(await cache.get_or_set("k", load))
"""


class Worker:
    """One process."""

    def __init__(self, url: str, job: str, options: dict[str, Any]) -> None:
        source = _MAIN.replace("{job}", textwrap.dedent(job))
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", source, url, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def said(self) -> Any:
        """The next thing it says."""
        assert self.process.stdout is not None
        line = await asyncio.to_thread(self.process.stdout.readline)
        assert line, f"the worker ended with {self.process.poll()}"
        return json.loads(line)

    def tell(self, value: Any = None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(value) + "\n")
        self.process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


class Fleet:
    def __init__(self, url: str, **options: Any) -> None:
        self._url, self._options = url, {"patience_s": 5.0, **options}  # a busy machine is no outage
        self._workers: list[Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:
            worker.end()

    def start(self, job: str, **options: Any) -> Worker:
        worker = Worker(self._url, job, {**self._options, **options})
        self._workers.append(worker)
        return worker
