"""Several real processes that use one cache: `with Fleet(url) as fleet: worker = fleet.start(JOB)`.

A job is the source of `async def job(cache, redis, say, told)`: `say(x)` sends something to the test, `await told()`
waits for something from it. The processes are forked by a server that has imported aegis, so each is there at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import textwrap
import threading
import warnings
from multiprocessing import connection, get_context
from typing import Any, Self

from aegis.config import RedisConfig
from aegis.redis import Cache, Redis

_processes = get_context("forkserver")
_processes.set_forkserver_preload(["aegis.config", "aegis.redis"])

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
        self._pipe, theirs = _processes.Pipe()
        self.process = _processes.Process(target=_work, args=(theirs, url, job, options), daemon=True)
        self.process.start()
        theirs.close()

    async def said(self) -> Any:
        """The next thing it says; EOFError when it has ended."""
        return await asyncio.to_thread(self._pipe.recv)

    def tell(self, value: Any = None) -> None:
        self._pipe.send(value)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self._pipe.close()


def _work(pipe: connection.Connection, url: str, job: str, options: dict[str, Any]) -> None:
    """What runs in the process."""
    warnings.simplefilter("error")
    exec(textwrap.dedent(job), globals())

    async def main() -> None:
        loop, told = asyncio.get_running_loop(), asyncio.Queue()

        def listen() -> None:
            while True:
                try:
                    loop.call_soon_threadsafe(told.put_nowait, pipe.recv())
                except EOFError:  # the test has gone
                    os._exit(1)

        threading.Thread(target=listen, daemon=True).start()
        async with Redis(RedisConfig(url=url)) as redis:
            await globals()["job"](Cache(redis, **options), redis, pipe.send, told.get)

    asyncio.run(main())


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
