"""`aegis limits`: how the limits of KIS, DART and Naver stand in Redis, live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from aegis import upstream
from aegis.cli._app import AsJson, EnvFile, new_app, run
from aegis.config import Config
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
        typer.Argument(help="Only these presets.", autocompletion=lambda: [limit.name for limit in _presets()]),
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

    Permits used in the sliding window, seconds to the next permit, and pauses that an upstream asked for. The limits
    are the presets, of KIS_APP_KEY and DART_API_KEY; a limit of your own is shown by your own `limiter.peek`.

    Example: aegis limits kis dart --once --json
    """
    chosen = _chosen(names or [])
    config = Config.load(env_file=env_file)
    console = Console()
    live = not (once or json) and console.is_terminal
    run(_shown(config, chosen, key, interval if live else None, console, json=json))


def _presets() -> list[RateLimit]:
    return [value for value in vars(upstream).values() if isinstance(value, RateLimit)]


def _chosen(names: list[str]) -> list[RateLimit]:
    presets = {limit.name: limit for limit in _presets()}
    for name in names:
        if name not in presets:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(presets)}")
    return [presets[name] for name in names or presets]


def _key(config: Config, limit: RateLimit) -> str:
    """What the clients pass as `key`: the credential that the quota belongs to."""
    section, field = _SECRET.get(limit.name.partition("-")[0], ("", ""))
    secret = getattr(getattr(config, section), field) if section else None
    return secret.get_secret_value() if secret is not None else ""


async def _looks(config: Config, chosen: list[RateLimit], key: str | None) -> AsyncGenerator[list[_Row], None]:
    async with Redis(config.redis) as redis:
        limiter = RateLimiter(redis, config.key_prefix)
        while True:
            keys = [_key(config, limit) if key is None else key for limit in chosen]
            usages = await asyncio.gather(*map(limiter.peek, chosen, keys))
            yield [_Row(limit, usage) for limit, usage in zip(chosen, usages, strict=True)]


async def _shown(
    config: Config, chosen: list[RateLimit], key: str | None, interval: float | None, console: Console, *, json: bool
) -> None:
    looks = _looks(config, chosen, key)
    rows = await anext(looks)
    if interval is None:
        if json:
            typer.echo(msgspec.json.encode([row.data() for row in rows]))
        else:
            console.print(_table(rows))
        await looks.aclose()
        return
    with Live(_table(rows), console=console, auto_refresh=False) as live:
        async for rows in looks:
            live.update(_table(rows), refresh=True)
            await asyncio.sleep(interval)


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
