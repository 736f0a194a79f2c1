"""A process that listens to the broadcast of all collectors, and says whether it has the newest at the end."""

from __future__ import annotations

import asyncio
import contextlib

from aegis.config import Config
from aegis.demo._child import Parent, run_child
from aegis.redis import Gap, Update
from aegis.runtime import Runtime

_TELL_EVERY_S = 0.2


async def subscribe(parent: Parent) -> None:
    """Count ticks and gaps of the whole topic until told to stop; then ask Redis for the newest value of every code."""
    received = gaps = 0
    newest: dict[str, object] = {}
    async with (
        Runtime(Config.load(env_file=None), database=False) as rt,
        rt.bus.subscribe(policy="all") as updates,
    ):

        async def count() -> None:
            nonlocal received, gaps
            async for event in updates:
                match event:
                    case Update():
                        received += not event.snapshot
                        newest[event.key] = event.value
                    case Gap():
                        gaps += 1

        counting = asyncio.create_task(count())
        parent.tell("ready")
        while not parent.stopping.is_set():
            parent.tell("progress", ticks_received=received, gaps=gaps)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(parent.stopping.wait(), _TELL_EVERY_S)
            if counting.done():
                counting.result()  # raises what ended the subscription
                raise RuntimeError("the subscription ended by itself")
        counting.cancel()
        kept = await asyncio.gather(*(rt.bus.last(code) for code in newest))
        behind = sum(value != mine for value, mine in zip(kept, newest.values(), strict=True))
        parent.tell("final", ticks_received=received, gaps=gaps, values_behind=behind)


if __name__ == "__main__":
    run_child(subscribe)
