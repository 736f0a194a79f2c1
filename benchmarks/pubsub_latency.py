"""
How long does a tick take from `publish` in one process to the consumer in another, and what does it cost the server?

At 1,000 and at 20,000 ticks per second, steady, on 2,000 keys. Latency is from just before `publish` to the consumer's
loop body, by the one clock of this machine; so the flush interval (5 ms) is in it, and `urgent` shows it without.
Server commands are counted by the server itself, those inside of scripts too.

rival  redis-py: SET and PUBLISH of every tick in one pipeline per 5 ms, `pubsub.listen()`: what most services do.

    python -m benchmarks.pubsub_latency [--smoke] [--json] [--seconds 10]
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from typing import Any

import msgspec
from benchmarks._report import options, progress, report, show
from benchmarks.pubsub_throughput import KEYS, PACKAGES

RATES = (1000, 20_000)
WINDOW_S = 0.005
CHANNEL = "bench:quotes"
START_MAX_S, SILENCE_S = 20.0, 1.5


class Stamp(msgspec.Struct, frozen=True, gc=False):
    """What travels: when it was published."""

    sent_ns: int
    price: int = 70_000
    volume: int = 12_345


async def paced(rate: int, seconds: float, send: Any) -> None:
    """Call `await send(keys)` for the ticks that are due, about every millisecond."""
    started, sent = time.monotonic(), 0
    while (elapsed := time.monotonic() - started) < seconds:
        due = int(elapsed * rate)
        if due > sent:
            await send([KEYS[number % len(KEYS)] for number in range(sent, due)])
            sent = due
        await asyncio.sleep(0.001)


async def publish_aegis(port: int, rate: int, seconds: float, *, urgent: bool) -> dict[str, float]:
    from aegis.config import RedisConfig
    from aegis.redis import PubSub, Redis

    async with Redis(RedisConfig(host="127.0.0.1", port=port)) as redis, PubSub(redis, topic="bench") as bus:

        async def send(keys: list[str]) -> None:
            for key in keys:
                await bus.publish(key, Stamp(time.monotonic_ns()), urgent=urgent)

        await paced(rate, 1.0, send)
        await bus.flush()
        before, frames, ticks = await commands(redis), bus.stats().frames, bus.stats().published
        await paced(rate, seconds, send)
        await bus.flush()
        ticks = bus.stats().published - ticks
        called = await commands(redis) - before
        return {"commands_per_tick": called / ticks, "ticks_per_frame": ticks / (bus.stats().frames - frames)}


async def commands(redis: Any) -> int:
    """Commands that the server has executed, those of scripts and heartbeats included."""
    info = (await redis.execute("INFO", "commandstats")).decode()
    return sum(int(line.split("calls=")[1].split(",")[0]) for line in info.splitlines() if "calls=" in line)


async def subscribe_aegis(port: int) -> list[float]:
    from aegis.config import RedisConfig
    from aegis.redis import Gap, PubSub, Redis

    took: list[float] = []
    async with (
        Redis(RedisConfig(host="127.0.0.1", port=port)) as redis,
        PubSub(redis, topic="bench") as bus,
        bus.subscribe(type=Stamp, policy="all") as updates,
    ):
        print("ready", flush=True)
        while True:
            try:
                async with asyncio.timeout(SILENCE_S if took else START_MAX_S):
                    event = await anext(updates)
            except TimeoutError:
                return took
            if type(event) is Gap:
                raise AssertionError(event)
            if not event.snapshot:
                took.append((time.monotonic_ns() - event.value.sent_ns) / 1e6)


async def publish_redis_py(port: int, rate: int, seconds: float) -> dict[str, float]:
    import redis.asyncio

    client = redis.asyncio.Redis(host="127.0.0.1", port=port)
    encode, waiting = msgspec.json.Encoder().encode, []
    total = 0

    async def flush() -> None:
        while True:
            await asyncio.sleep(WINDOW_S)
            if waiting:
                pipe = client.pipeline(transaction=False)
                for key, payload in waiting:
                    pipe.set(f"last:{key}", payload)
                    pipe.publish(CHANNEL, payload)
                waiting.clear()
                await pipe.execute()

    async def send(keys: list[str]) -> None:
        nonlocal total
        total += len(keys)
        for key in keys:
            waiting.append((key, encode(Stamp(time.monotonic_ns()))))

    flushing = asyncio.create_task(flush())
    await paced(rate, 1.0, send)
    before, total = (await client.info("stats"))["total_commands_processed"], 0
    await paced(rate, seconds, send)
    await asyncio.sleep(0.2)
    called = (await client.info("stats"))["total_commands_processed"] - before
    flushing.cancel()
    await client.aclose()
    return {"commands_per_tick": called / total, "ticks_per_frame": 1.0}


async def subscribe_redis_py(port: int) -> list[float]:
    import redis.asyncio

    client, decode, took = redis.asyncio.Redis(host="127.0.0.1", port=port), msgspec.json.Decoder(Stamp).decode, []
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(CHANNEL)
        print("ready", flush=True)
        heard_at = time.monotonic() + START_MAX_S
        while time.monotonic() < heard_at + SILENCE_S:
            message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.5)
            if message is not None:
                heard_at = time.monotonic()
                took.append((time.monotonic_ns() - decode(message["data"]).sent_ns) / 1e6)
    await client.aclose()
    return took


def worker(rival: str, role: str, port: int, rate: int, seconds: float) -> dict[str, float]:
    """What a child process does."""
    if role == "publish":
        if rival == "redis-py":
            return asyncio.run(publish_redis_py(port, rate, seconds))
        return asyncio.run(publish_aegis(port, rate, seconds, urgent=rival == "aegis urgent"))
    took = asyncio.run((subscribe_redis_py if rival == "redis-py" else subscribe_aegis)(port))
    took = sorted(took[rate:])  # without the first second
    return {
        "ticks": len(took),
        "p50_ms": round(took[len(took) // 2], 2),
        "p99_ms": round(took[len(took) * 99 // 100], 2),
        "max_ms": round(took[-1], 2),
    }


def start(rival: str, role: str, port: int, rate: int, seconds: float) -> subprocess.Popen[str]:
    """A process of its own."""
    plan = json.dumps([rival, role, port, rate, seconds])
    command = [sys.executable, "-m", "benchmarks.pubsub_latency", "--worker", plan]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def measure(rival: str, port: int, rate: int, seconds: float) -> dict[str, Any]:
    """One rate."""
    subscriber = start(rival, "subscribe", port, rate, seconds)
    assert subscriber.stdout is not None
    if subscriber.stdout.readline() != "ready\n":
        raise SystemExit(f"{rival}: the subscriber did not start")
    publisher = start(rival, "publish", port, rate, seconds)
    result: dict[str, Any] = {"rival": rival, "rate": rate}
    for child in (publisher, subscriber):
        out, _ = child.communicate(timeout=seconds + 90)
        if child.returncode:
            raise SystemExit(f"{rival} failed")
        result |= json.loads(out.splitlines()[-1])
    for field in ("commands_per_tick", "ticks_per_frame"):
        result[field] = round(result[field], 3)
    return result


def main() -> None:
    """Read the options, measure, say it."""
    from aegis.embedded import EmbeddedValkey

    args = options(__doc__, smoke="short, to see that it runs", seconds=10.0).parse_args()
    if args.worker:
        print(json.dumps(worker(*args.worker)))
        return
    seconds, rows = 1.0 if args.smoke else args.seconds, []
    with EmbeddedValkey(port=0) as server:
        for rate in RATES:
            for rival in ("aegis", "aegis urgent", "redis-py"):
                if rival == "aegis urgent" and rate != RATES[0]:
                    continue
                rows.append(measure(rival, server.port, rate, seconds))
                progress(rows[-1])
    show(report("latency and server commands per tick", rows, PACKAGES, seconds=seconds), as_json=args.json)


if __name__ == "__main__":
    main()
