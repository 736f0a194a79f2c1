"""`aegis collect`: the demo's collectors on the real upstreams, with your keys and your servers."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from aegis.cli._app import AsJson, EnvFile, new_app
from aegis.config import Config
from aegis.dashboard import Dashboard
from aegis.demo.collect import Plan, check_settings, checked_codes, collect, plan
from aegis.demo.collector import Counts
from aegis.telemetry import configure_logging, secrets_of

app = new_app()


@app.command(name="collect")
def collect_(
    codes: Annotated[list[str], typer.Argument(help="Stock codes, such as 005930 000660.")],
    seconds: Annotated[
        float | None, typer.Option(min=1.0, help="How long; without it until Ctrl-C.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would do, ask nobody, and end.")] = False,
    page: Annotated[bool, typer.Option("--page", help="Serve the live page on PORT meanwhile.")] = False,
    env_file: EnvFile = Path(".env"),
    json: AsJson = False,
) -> None:
    """
    Collect quotes, charts and disclosures from the real upstreams.

    Into your PostgreSQL and onto your topic, with KIS_APP_KEY, KIS_APP_SECRET and DART_API_KEY. Start it as often as
    you like: all share one quota, one token, one cache. Ctrl-C finishes what is in hand.

    Example: aegis collect 005930 000660 --dry-run

    Example: aegis collect $(cat codes.txt) --page
    """
    try:
        chosen = checked_codes(codes)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from None
    config = Config.load(env_file=env_file)
    check_settings(config)
    if dry_run:
        what = plan(config, chosen)
        typer.echo(msgspec.json.encode(what) if json else _as_text(what))
        return
    configure_logging(config.log, process=config.process, secrets=secrets_of(config))
    counts = asyncio.run(_collected(config, chosen, seconds, page=page))
    typer.echo(msgspec.json.encode(counts) if json else _as_line(counts))


async def _collected(config: Config, codes: tuple[str, ...], seconds: float | None, *, page: bool) -> Counts:
    stopping = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        if page:
            dashboard = await stack.enter_async_context(Dashboard(config.port))
            await stack.enter_async_context(dashboard.live(config))
            typer.echo(f"to be seen on {dashboard.url}", err=True)
        stack.enter_context(_ended_by(stopping, seconds))
        return await collect(config, codes, stopping, lambda counts: typer.echo(_as_line(counts), err=True))


@contextlib.contextmanager
def _ended_by(stopping: asyncio.Event, seconds: float | None) -> Iterator[None]:
    """Ctrl-C, SIGTERM and the time that was given end it in order."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    timer = loop.call_later(seconds, stopping.set) if seconds is not None else None
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _as_line(counts: Counts) -> str:
    return (
        f"prices {counts.prices}  ticks {counts.ticks_published}  rows new {counts.rows_inserted}, "
        f"changed {counts.rows_updated}, same {counts.rows_unchanged}  failed {counts.failures}"
    )


def _as_text(what: Plan) -> str:
    lines = [f"would collect {what.codes} codes with a {what.account} account, and ask nobody now:"]
    for use in what.upstreams:
        lines += [
            f"  {use.name:6} {use.host}",
            f"         limit {use.limit}, shared by all processes",
            f"         {use.asks}",
        ]
    lines.append(f"  writes the tables {', '.join(what.writes)}; publishes on the topic {what.publishes!r}")
    lines.append(f"  keys in Redis begin with {what.prefix!r}")
    return "\n".join(lines)
