"""`aegis sim`: the simulator alone, where it listens, and at the end what it saw."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from aegis.cli._app import new_app
from aegis.upstream.simulator import Fault, Market, Rules, Simulator

app = new_app()

_NEW_CUSTOMER = {"kis_per_second": 3}
_PAPER = {"kis_per_second": 1, "kis_paper": True}
_EPILOG = f"""
\b
Rules and their values:
  {f"{chr(10)}  ".join(f"{rule.name}={rule.default}" for rule in fields(Rules))}
\b
Faults: {", ".join(Fault.kinds())};
each with any of ,service=kis|dart|naver ,path=part ,times=N ,every=N ,code=CODE ,seconds=S ,executed=true
\b
Examples:
  aegis sim --port 8790 --replay bars.csv.gz
  aegis sim --paper --fault blank-500,service=kis,every=20
  aegis sim --rule dart_per_day=100 --rule dart_block_per_minute=50
  aegis sim --fault maintenance,service=kis,every=100 --fault code,code=EGW00301,path=order,executed=true
"""


@app.command(epilog=_EPILOG)
def sim(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Where to listen; 0: any free port.")] = 0,
    replay: Annotated[
        Path | None, typer.Option(help="Daily bars to replay: CSV, plain or gzip. Without it, a seeded walk.")
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="A paper account of KIS: 1/s, transactions with V.")] = False,
    new_customer: Annotated[bool, typer.Option("--new-customer", help="The first three days at KIS: 3/s.")] = False,
    rule: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="One number of the rules.")] = None,
    fault: Annotated[list[str] | None, typer.Option(metavar="FAULT", help="Something that goes wrong.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Addresses and report as one JSON object each.")] = False,
    exit_with_stdin: Annotated[bool, typer.Option("--exit-with-stdin", help="End when stdin closes.")] = False,
) -> None:
    """
    Run the simulator of KIS, DART and Naver alone.

    Strict in every sliding window, on the loopback, until Ctrl-C. GET /_sim/report says what it saw; POST /_sim/faults,
    /_sim/rules and /_sim/void-tokens change it while it runs.

    Example: aegis sim --port 8790 --fault reset,service=dart,every=10
    """
    changes: dict[str, Any] = {**(_NEW_CUSTOMER if new_customer else {}), **(_PAPER if paper else {})}
    try:
        rules = Rules(**changes)
        for text in rule or ():
            rules = rules.with_text(text)
        faults = [Fault.parse(text) for text in fault or ()]
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from None
    market = Market.replayed(replay) if replay else Market.generated()
    simulator = Simulator(market, rules, port=port)
    for each in faults:
        simulator.state.faults.add(each)
    asyncio.run(_serve(simulator, json=json, exit_with_stdin=exit_with_stdin))


async def _serve(simulator: Simulator, *, json: bool, exit_with_stdin: bool) -> None:
    done = asyncio.Event()
    with _ended_by(done, exit_with_stdin=exit_with_stdin):
        async with simulator:
            _say(_as_json(simulator.describe()) if json else _where(simulator))
            await done.wait()
            report = simulator.report()
    _say(_as_json({"kind": "report", **report}) if json else _seen(report))


@contextlib.contextmanager
def _ended_by(done: asyncio.Event, *, exit_with_stdin: bool) -> Iterator[None]:
    """Ctrl-C and SIGTERM end it in order: that is how it is meant to end, so the exit code is 0."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, done.set)
    if exit_with_stdin:
        loop.add_reader(sys.stdin.fileno(), lambda: None if os.read(sys.stdin.fileno(), 1024) else done.set())
    try:
        yield
    finally:
        if exit_with_stdin:
            loop.remove_reader(sys.stdin.fileno())


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # who started it is gone
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def _as_json(record: dict[str, Any]) -> str:
    return msgspec.json.encode(record).decode()


def _where(simulator: Simulator) -> str:
    url, rules = simulator.url, simulator.rules
    account = "paper" if rules.kis_paper else "real"
    return f"""\
KIS, DART and Naver, simulated, on {url}
  KIS    {rules.kis_per_second}/s ({account}), one token per {rules.token_interval_s:g} s
  DART   {rules.dart_per_minute}/min, {rules.dart_per_day:,} a day, blocked above {rules.dart_block_per_minute}/min
  Naver  {rules.naver_per_second}/s
  {len(simulator.market.codes)} codes up to {simulator.market.last_day}, such as {", ".join(simulator.market.codes[:3])}

export KIS_BASE_URL={url} DART_BASE_URL={url} NAVER_BASE_URL={url} NAVER_CHART_URL={url}
export KIS_IS_VIRTUAL={str(rules.kis_paper).lower()} KIS_APP_KEY=any KIS_APP_SECRET=any DART_API_KEY={"0" * 40}

what it saw: curl {url}/_sim/report        Ctrl-C ends it"""


def _seen(report: dict[str, Any]) -> str:
    lines = [
        f"{name:12} {seen['requests']:>7} requests, {seen['rejected']} refused, "
        f"at most {seen['worst_window']} in {seen['per']:g} s (limit {seen['limit']})"
        for name, seen in report.items()
        if isinstance(seen, dict) and "worst_window" in seen and seen["requests"]
    ]
    lines.append(f"{'tokens':12} {report['tokens_issued']:>7} issued, {report['tokens_refused']} refused")
    return "\n".join([*lines, *(f"violation: {what}" for what in report["violations"])])
