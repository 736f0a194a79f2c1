"""
Run the simulator alone: `python -m aegis.upstream.simulator --port 8790 --replay bars.csv.gz`.

Prints one line of JSON with its addresses when it is ready, and runs until it is interrupted, or until its stdin closes
with `--exit-with-stdin`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import msgspec

from aegis.errors import AegisError
from aegis.upstream.simulator.faults import Fault
from aegis.upstream.simulator.market import Market
from aegis.upstream.simulator.server import Simulator
from aegis.upstream.simulator.state import Rules

_PAPER = {"kis_per_second": 1, "kis_paper": True}
_NEW_CUSTOMER = {"kis_per_second": 3}
_FAULTS = (
    "reset, hang, cut, drip, slow, blank-500, html, wrong-charset, code or maintenance, then any of service= path= "
    "times= every= code= executed= seconds=; for example reset,service=dart,every=10"
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aegis sim", description="KIS, DART and Naver on one local port, strict.")
    parser.add_argument("--port", type=int, default=0, help="0: a free one (default)")
    parser.add_argument("--replay", type=Path, help="daily bars as CSV, plain or gzip; without it, a seeded walk")
    parser.add_argument("--paper", action="store_true", help="a paper account of KIS: 1/s, transactions with V")
    parser.add_argument("--new-customer", action="store_true", help="the first three days at KIS: 3/s")
    parser.add_argument("--token-interval", type=float, default=60.0, help="seconds between tokens of one app key")
    parser.add_argument("--rule", action="append", default=[], metavar="NAME=NUMBER", help="one number of the rules")
    parser.add_argument("--fault", action="append", default=[], metavar="FAULT", help=_FAULTS)
    parser.add_argument("--exit-with-stdin", action="store_true", help="end when stdin closes")
    return parser


def _rules(arguments: argparse.Namespace) -> Rules:
    changes: dict[str, Any] = {"token_interval_s": arguments.token_interval}
    changes |= _NEW_CUSTOMER if arguments.new_customer else {}
    changes |= _PAPER if arguments.paper else {}
    rules = replace(Rules(), **changes)
    for text in arguments.rule:
        name, _, value = text.partition("=")
        if name not in asdict(rules):
            raise ValueError(f"--rule {text}: {name!r} is none of {', '.join(asdict(rules))}")
        try:
            rules = msgspec.convert({**asdict(rules), name: value}, Rules, strict=False)
        except msgspec.ValidationError as exc:
            raise ValueError(f"--rule {text}: {exc}") from None
    return rules


async def serve(simulator: Simulator, *, exit_with_stdin: bool) -> None:
    """Serve until interrupted, or until stdin closes."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, done.set)
    if exit_with_stdin:
        loop.add_reader(sys.stdin.fileno(), lambda: None if os.read(sys.stdin.fileno(), 1024) else done.set())
    try:
        async with simulator:
            sys.stdout.write(msgspec.json.encode(simulator.describe()).decode() + "\n")
            sys.stdout.flush()
            await done.wait()
    finally:
        if exit_with_stdin:
            loop.remove_reader(sys.stdin.fileno())


def main(argv: Sequence[str] | None = None) -> None:
    """The command. Exit code 2 and one line when it cannot start."""
    arguments = _parser().parse_args(argv)
    try:
        rules, faults = _rules(arguments), [Fault.parse(text) for text in arguments.fault]
        market = Market.replayed(arguments.replay) if arguments.replay else Market.generated()
        simulator = Simulator(market, rules, port=arguments.port)
        for fault in faults:
            simulator.state.switch_on(fault)
        asyncio.run(serve(simulator, exit_with_stdin=arguments.exit_with_stdin))
    except (AegisError, ValueError) as exc:
        sys.stderr.write(f"aegis sim: {exc}\n")
        raise SystemExit(2) from None
