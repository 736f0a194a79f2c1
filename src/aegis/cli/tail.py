"""`aegis tail`: a topic of the broadcast, live."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aegis.cli._app import EXIT_BROKEN, EnvFile, new_app, run
from aegis.config import Config
from aegis.redis import Gap, PubSub, Redis, Subscription, Update

app = new_app()

_REFRESH_S = 0.25
_FIELDS_SHOWN = 6
_ROWS_SHOWN = 200


class PolicyName(StrEnum):
    """What a slow reader gets; see `PubSub.subscribe`."""

    LATEST = "latest"
    MERGE = "merge"
    TRADE_SAFE = "trade_safe"
    ALL = "all"


@app.command()
def tail(
    topic: Annotated[str, typer.Argument(help="The topic, such as quotes.")],
    keys: Annotated[list[str] | None, typer.Argument(help="Only these keys; without any, all.")] = None,
    pattern: Annotated[
        list[str] | None, typer.Option(help="Also the keys that match this glob, such as '00*'.")
    ] = None,
    policy: Annotated[
        PolicyName, typer.Option(help="all: every tick; latest: the newest of each key.")
    ] = PolicyName.LATEST,
    count: Annotated[int, typer.Option(min=0, help="End after so many updates; 0: never.")] = 0,
    env_file: EnvFile = Path(".env"),
    json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """
    Show a topic live.

    Starts with the last values, then follows. On a terminal a table of the newest values, else a line per update; a
    loss is shown as such. Ctrl-C ends it.

    Example: aegis tail quotes 005930 000660 --json
    """
    config = Config.load(env_file=env_file)
    if not config.redis.enabled:
        typer.echo("aegis: REDIS_ENABLED=false, so there is no broadcast to show", err=True)
        raise typer.Exit(EXIT_BROKEN)
    console = Console()
    table = console.is_terminal and not json
    run(_follow(config, topic, keys or [], pattern or [], policy, count, console if table else None, json=json))


async def _follow(
    config: Config,
    topic: str,
    keys: list[str],
    patterns: list[str],
    policy: PolicyName,
    count: int,
    console: Console | None,
    *,
    json: bool,
) -> None:
    async with (
        Redis(config.redis) as redis,
        PubSub(redis, prefix=config.key_prefix, topic=topic) as bus,
        bus.subscribe(*keys, patterns=patterns, policy=policy.value) as updates,
    ):
        if console is None:
            await _lines(updates, count, as_json if json else as_text)
        else:
            await _table(updates, count, topic, console)


async def _lines(updates: Subscription, count: int, render: Callable[[Update | Gap], str]) -> None:
    shown = 0
    async for event in updates:
        print(render(event), flush=True)  # noqa: T201 - this is what the command is for
        shown += isinstance(event, Update)
        if count and shown >= count:
            return


async def _table(updates: Subscription, count: int, topic: str, console: Console) -> None:
    """The newest values, a few times a second; whatever comes in between is only remembered."""
    newest: dict[str, Update] = {}
    shown = lost = 0
    with Live(console=console, auto_refresh=False) as live:
        while True:
            until = time.monotonic() + _REFRESH_S
            while (left := until - time.monotonic()) > 0 and not (count and shown >= count):
                try:
                    event = await asyncio.wait_for(anext(updates), left)
                except TimeoutError:
                    break
                if isinstance(event, Gap):
                    lost += event.lost
                else:
                    newest[event.key] = event
                    shown += 1
            live.update(_rendered(topic, newest, lost, live=updates.live), refresh=True)
            if count and shown >= count:
                return


def _rendered(topic: str, newest: dict[str, Update], lost: int, *, live: bool) -> Group:
    state = "live" if live else "STALE: the server is not heard"
    title = f"{topic}: {len(newest)} keys, {lost} ticks lost, {state}"
    fields = list(dict.fromkeys(name for update in newest.values() for name in _fields(update.value)))[:_FIELDS_SHOWN]
    table = Table("key", *fields, "age", box=None, pad_edge=False)
    now = time.time()
    for key in sorted(newest)[:_ROWS_SHOWN]:
        update = newest[key]
        values = _fields(update.value)
        cells = [str(values.get(name, "")) for name in fields]
        table.add_row(key, *cells, f"{max(now - update.published_at, 0.0):.1f} s")
    return Group(Text(title), table)


def _fields(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {"value": value}


def as_json(event: Update | Gap) -> str:
    """One line of JSON; a loss has `stream`, an update `key`."""
    return msgspec.json.encode(event).decode()


def as_text(event: Update | Gap) -> str:
    """One line for people."""
    if isinstance(event, Gap):
        return f"-- {event.lost or 'unknown'} ticks of {event.stream} were lost: {event.reason}"
    at = datetime.fromtimestamp(event.published_at).astimezone().isoformat(timespec="milliseconds")
    folded = f"  (+{event.conflated} folded)" if event.conflated else ""
    return f"{at}  {event.key}  {msgspec.json.encode(event.value).decode()}{folded}"
