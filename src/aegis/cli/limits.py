"""`aegis limits`: how the limits of KIS, DART and Naver stand in Redis, and your own; live."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from aegis.cli._app import AsJson, EnvFile, new_app, run
from aegis.cli._named_limits import named_limits, presets
from aegis.config import Config
from aegis.errors import RedisError
from aegis.redis import RateLimit, RateLimiter, Redis, Usage

app = new_app()

_BAR_CELLS = 20
_SECRET = {"kis": ("kis", "app_key"), "dart": ("dart", "api_key")}


@dataclass(frozen=True, slots=True)
class _Row:
    limit: RateLimit
    usage: Usage

    def data(self) -> dict[str, Any]:
        rates = [{"limit": rate.limit, "per": rate.per} for rate in self.limit.rates]
        return {"limit": self.limit.name, "rates": rates, **self.usage._asdict()}


@app.command()
def limits(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Only these: presets, or your own as MODULE:NAME or MODULE.",
            autocompletion=lambda: list(presets()),
        ),
    ] = None,
    interval: Annotated[float, typer.Option(min=0.05, help="Seconds between two looks.")] = 0.25,
    once: Annotated[
        bool, typer.Option("--once", help="Look once; the default where the output is no terminal.")
    ] = False,
    key: Annotated[
        str | None, typer.Option(help="The account, where it is not the configured key. Only its hash is sent.")
    ] = None,
    env_file: EnvFile = Path(".env"),
    json: AsJson = False,
) -> None:
    """
    Show how every limit stands, live; changes nothing.

    Permits used in the sliding window, seconds to the next permit, and pauses that an upstream asked for. Without
    names, these are the presets, of KIS_APP_KEY and DART_API_KEY. A limit of your own is found where your program
    defines it: MODULE:NAME is one RateLimit, MODULE every one in it, imported as `python -m MODULE` would be.

    Example: aegis limits kis dart --once --json

    Example: aegis limits kis myprogram.limits:ORDERS --key 00123456-01
    """
    chosen = named_limits(names or [])
    config = Config.load(env_file=env_file)
    console = Console()
    live = not (once or json) and console.is_terminal
    run(_shown(config, chosen, key, interval if live else None, console, json=json))


def _key(config: Config, limit: RateLimit) -> str:
    """What the clients pass as `key`: the credential that the quota belongs to."""
    section, field = _SECRET.get(limit.name.partition("-")[0], ("", ""))
    secret = getattr(getattr(config, section), field) if section else None
    return secret.get_secret_value() if secret is not None else ""


async def _shown(
    config: Config, chosen: list[RateLimit], key: str | None, interval: float | None, console: Console, *, json: bool
) -> None:
    keys = [_key(config, limit) if key is None else key for limit in chosen]
    async with Redis(config.redis) as redis:
        limiter = RateLimiter(redis, config.key_prefix)
        rows = await _look(limiter, chosen, keys)
        if interval is not None:
            await _live(limiter, rows, keys, interval, console)
        elif json:
            typer.echo(msgspec.json.encode([row.data() for row in rows]))
        else:
            console.print(_table(rows))


async def _look(limiter: RateLimiter, chosen: list[RateLimit], keys: list[str]) -> list[_Row]:
    usages = await asyncio.gather(*map(limiter.peek, chosen, keys))
    return [_Row(limit, usage) for limit, usage in zip(chosen, usages, strict=True)]


async def _live(limiter: RateLimiter, rows: list[_Row], keys: list[str], interval: float, console: Console) -> NoReturn:
    """Until cancelled. While Redis is away, what was seen last stays, and the line below says why."""
    problem = ""
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(Group(_table(rows), Text(problem)) if problem else _table(rows), refresh=True)
            await asyncio.sleep(interval)
            try:
                rows, problem = await _look(limiter, [row.limit for row in rows], keys), ""
            except RedisError as exc:
                problem = f"{exc}; these are the values from before"


def _table(rows: list[_Row]) -> Table:
    table = Table("limit", "window", "used", "", "next in", "held for", box=None, pad_edge=False)
    for row in rows:
        rate, usage = row.limit.rates[0], row.usage
        filled = round(_BAR_CELLS * min(1.0, usage.used / rate.limit))
        table.add_row(
            row.limit.name,
            f"{rate.limit} in {rate.per:g} s",
            f"{usage.used}",
            "█" * filled + "·" * (_BAR_CELLS - filled),
            f"{usage.next_in:.2f} s" if usage.next_in else "now",
            f"{usage.held_for:.1f} s" if usage.held_for else "",
        )
    return table
