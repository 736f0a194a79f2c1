"""
Run the simulator alone: `python -m aegis.upstream.simulator --port 8790 --replay bars.csv.gz`.

Prints one line of JSON with its addresses when it is ready, and runs until it is interrupted, or until its stdin closes
with `--exit-with-stdin`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from aegis.errors import AegisError
from aegis.upstream.simulator.market import Market
from aegis.upstream.simulator.server import Simulator
from aegis.upstream.simulator.state import Rules


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="aegis-simulator", description="KIS, DART and Naver on one local port.")
    parser.add_argument("--port", type=int, default=0, help="0: a free one (default)")
    parser.add_argument("--replay", type=Path, help="daily bars as CSV, plain or gzip; without it, a seeded walk")
    parser.add_argument("--token-interval", type=float, default=60.0, help="seconds between tokens of one app key")
    parser.add_argument("--exit-with-stdin", action="store_true", help="end when stdin closes")
    return parser.parse_args()


async def serve(simulator: Simulator, *, exit_with_stdin: bool) -> None:
    """Serve until interrupted, or until stdin closes."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, done.set)
    if exit_with_stdin:
        loop.add_reader(sys.stdin.fileno(), lambda: None if os.read(sys.stdin.fileno(), 1024) else done.set())
    async with simulator:
        sys.stdout.write(msgspec.json.encode(simulator.describe()).decode() + "\n")
        sys.stdout.flush()
        await done.wait()
    if exit_with_stdin:
        with contextlib.suppress(ValueError):
            loop.remove_reader(sys.stdin.fileno())


def main() -> None:
    """The command."""
    arguments = _arguments()
    try:
        market = Market.replayed(arguments.replay) if arguments.replay else Market.generated()
        rules = replace(Rules(), token_interval_s=arguments.token_interval)
        asyncio.run(serve(Simulator(market, rules, port=arguments.port), exit_with_stdin=arguments.exit_with_stdin))
    except AegisError as exc:
        sys.stderr.write(f"aegis simulator: {exc}\n")
        raise SystemExit(2) from None


main()
