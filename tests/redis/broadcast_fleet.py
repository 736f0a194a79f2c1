"""
Processes of the broadcast's contract tests: `async with fleet((ROLE, URL, ARGUMENTS...), ...) as children`.

They are forked by a server that has imported aegis, so each is there at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aegis.config import RedisConfig
from aegis.redis import Gap, PubSub, Redis

_processes = get_context("forkserver")
_processes.set_forkserver_preload(["aegis.config", "aegis.redis"])


class Child:
    """One process of the fleet, as the test sees it."""

    def __init__(self, command: tuple[str, ...]) -> None:
        role, url, *arguments = command
        self._pipe, theirs = _processes.Pipe()
        self.process = _processes.Process(target=play, args=(theirs, role, url, tuple(arguments)), daemon=True)
        self.process.start()
        theirs.close()

    async def heard(self) -> dict[str, Any]:
        """The next thing it says; EOFError when it has ended."""
        said: dict[str, Any] = await asyncio.wait_for(asyncio.to_thread(self._pipe.recv), 50)
        return said

    async def asked(self) -> dict[str, Any]:
        """Its answer."""
        self._pipe.send(None)
        return await self.heard()

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.join()
        self._pipe.close()


@contextlib.asynccontextmanager
async def fleet(*commands: tuple[str, ...]) -> AsyncIterator[list[Child]]:
    """Processes that are ready; killed at the end."""
    children = [Child(command) for command in commands]
    try:
        for child in children:
            assert (await child.heard())["ready"]
        yield children
    finally:
        for child in children:
            child.end()


class Parent:
    """The test that started this process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def tell(self, **fields: Any) -> None:
        """Say something to it."""
        self._pipe.send(fields)

    async def told(self) -> bool:
        """Something from it; False when it is gone."""
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._pipe.recv)
        except EOFError:
            return False
        return True


async def publish(parent: Parent, redis: Redis, name: str, ticks: str) -> None:
    """On a line: count up on twenty keys of its own, and on one that all producers share."""
    async with PubSub(redis, producer=name) as bus:
        parent.tell(ready=True)
        await parent.told()
        for number in range(1, int(ticks) + 1):
            await bus.publish(f"{name}-{number % 20}", [name, number])
            if number % 10 == 0:
                await bus.publish("shared", [name, number])
                await asyncio.sleep(0.002)
        await bus.flush()
        parent.tell(published=bus.stats().published)


async def subscribe(parent: Parent, redis: Redis, policy: str) -> None:
    """Everything, until a line says that all has been published, and two heartbeats more: what came, what was lost."""
    numbers: dict[str, list[int]] = {}
    versions: dict[str, int] = {}
    newest: dict[str, Any] = {}
    gaps: list[list[Any]] = []
    backwards = 0
    async with PubSub(redis) as bus, bus.subscribe(policy=policy, ring=200_000) as updates:
        parent.tell(ready=True)
        over = asyncio.create_task(parent.told())
        compared = 0
        while True:
            try:
                event = await asyncio.wait_for(anext(updates), 0.1)
            except TimeoutError:
                heartbeats = bus.stats().heartbeats if over.done() and updates.live else 0
                compared = compared or heartbeats
                if heartbeats >= compared + 2 > 2:
                    break
                continue
            if isinstance(event, Gap):
                gaps.append([event.stream, event.from_seq, event.to_seq, event.lost])
                continue
            backwards += event.version <= versions.get(event.key, 0)
            versions[event.key], newest[event.key] = event.version, event.value
            if not event.snapshot:
                numbers.setdefault(event.key, []).append(event.value[1])
        parent.tell(numbers=numbers, gaps=gaps, backwards=backwards, newest=newest)


async def never_read(parent: Parent, redis: Redis, policy: str) -> None:
    """Subscribe and never take; on a line: what that costs."""
    async with PubSub(redis) as bus, bus.subscribe(policy=policy, ring=1000) as updates:
        parent.tell(ready=True)
        while await parent.told():
            stats = bus.stats()
            parent.tell(
                rss_kib=rss_kib(),
                pending=updates.pending,
                received=stats.received,
                heard=stats.received + stats.heartbeats,
                evicted=stats.evicted,
            )


def rss_kib() -> int:
    """Resident memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


def play(pipe: Connection, role: str, url: str, arguments: tuple[str, ...]) -> None:
    """What runs in the process."""

    async def main() -> None:
        async with Redis(RedisConfig(url=url)) as redis:
            await {"publish": publish, "subscribe": subscribe, "never_read": never_read}[role](
                Parent(pipe), redis, *arguments
            )

    asyncio.run(main())
