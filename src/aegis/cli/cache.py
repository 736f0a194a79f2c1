"""`aegis cache`: what lies in the shared cache, and how to get rid of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict
from typing import Annotated, Any

import msgspec
import typer

from aegis.cli._app import EXIT_BROKEN, new_app, run
from aegis.config import Config
from aegis.errors import ConfigError
from aegis.redis import Cache, CacheEntry, CacheSurvey, Redis

app = new_app(no_args_is_help=True)

#: Keys and fields with one of these in their name are masked: a terminal is recorded more often than one thinks.
_SECRET_WORDS = ("token", "secret", "password", "passwd", "approval", "appkey", "api_key", "authorization")
_MASK = "***"
_GROUPS_SHOWN = 20

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")]


@app.callback()
def cache() -> None:
    """Look into the shared cache, and remove from it."""


@app.command()
def get(
    key: Annotated[str, typer.Argument(help="As the program names it, with its namespace: `stock:005930`.")],
    reveal: Annotated[bool, typer.Option("--reveal", help="Show what looks like a secret, such as a token.")] = False,
    json: AsJson = False,
) -> None:
    """
    Show one value: what it is, how long it lives, what it cost. Exits with 1 if there is none.

    Example: aegis cache get stock:005930
    """

    async def look() -> CacheEntry | None:
        async with _opened() as opened:
            return await opened.inspect(key)

    entry = run(look())
    if entry is None:
        typer.echo(f"aegis: there is no value under {key!r}; `aegis cache keys` lists what there is", err=True)
        raise typer.Exit(EXIT_BROKEN)
    value = entry.value if reveal else _masked(key, entry.value)
    if json:
        typer.echo(_json({**asdict(entry), "value": value}))
        return
    typer.echo(_json(value, indent=2))
    ends = "never expires" if entry.expires_in_s is None else f"expires in {entry.expires_in_s:.1f} s"
    fresh = (
        f"fresh for {entry.fresh_for_s:.1f} s" if entry.fresh_for_s > 0 else f"stale since {-entry.fresh_for_s:.1f} s"
    )
    load = f"its load took {entry.load_s:.3f} s" if entry.load_s else "it was set"
    tags = f"; tags: {', '.join(entry.tags)}" if entry.tags else ""
    typer.echo(f"{entry.bytes:,} bytes; {ends}, {fresh}; {load}{tags}", err=True)


@app.command()
def keys(
    pattern: Annotated[str, typer.Argument(help="A glob: `stock:*`.")] = "*",
    limit: Annotated[int, typer.Option(min=1, max=10_000_000, help="Most keys that are listed.")] = 1000,
    json: AsJson = False,
) -> None:
    """
    List keys, one per line, without ever blocking the server.

    Example: aegis cache keys 'stock:0059*' --limit 20
    """

    async def look() -> list[str]:
        async with _opened() as opened:
            return await opened.keys(pattern, limit + 1)

    found = run(look())
    shown = found[:limit]
    if json:
        typer.echo(_json({"keys": shown, "more": len(found) > limit}))
        return
    for key in shown:
        typer.echo(key)
    if len(found) > limit:
        typer.echo(f"aegis: there are more; this is --limit {limit}", err=True)


@app.command()
def stats(json: AsJson = False) -> None:
    """
    What fills the cache on the server: values and bytes by group, loads under way, tags.

    Hits and misses are counted by each process: `Cache.stats()`, and its metrics.

    Example: aegis cache stats --json
    """

    async def look() -> CacheSurvey:
        async with _opened() as opened:
            with _progress() as on_step:
                return await opened.survey(on_step)

    found = run(look())
    if json:
        groups = {name: {"values": count, "bytes": size} for name, (count, size) in found.groups.items()}
        typer.echo(_json({**asdict(found), "groups": groups}))
        return
    typer.echo(f"{found.values:,} values, {found.bytes:,} bytes, {found.tags:,} tags")
    typer.echo(f"{found.loading:,} being loaded, {found.failing:,} quiet after a failed load")
    for name, (count, size) in list(found.groups.items())[:_GROUPS_SHOWN]:
        typer.echo(f"  {name:30} {count:>10,} values {size:>14,} bytes")
    if len(found.groups) > _GROUPS_SHOWN:
        typer.echo(f"  and {len(found.groups) - _GROUPS_SHOWN:,} more groups")


@app.command()
def invalidate(tag: Annotated[str, typer.Argument(help="Every value that carries it is gone.")]) -> None:
    """
    Remove all values of a tag, everywhere, also those being loaded right now.

    Example: aegis cache invalidate account:12-34
    """

    async def remove() -> None:
        async with _opened() as opened:
            await opened.invalidate(tag)

    run(remove())
    typer.echo(f"tag {tag!r} is invalidated")


@app.command()
def delete(key: Annotated[str, typer.Argument(help="As in `get`.")]) -> None:
    """
    Remove one value, everywhere. Exits with 0 whether or not there was one.

    Example: aegis cache delete stock:005930
    """

    async def remove() -> bool:
        async with _opened() as opened:
            return await opened.delete(key)

    typer.echo(f"{key!r} is deleted" if run(remove()) else f"there was no value under {key!r}")


@contextlib.asynccontextmanager
async def _opened() -> AsyncIterator[Cache]:
    """The cache of this configuration; it keeps nothing, and says when Redis does not answer."""
    config = Config.load()
    if not config.redis.enabled or config.redis.embedded:
        found = "REDIS_URL=embedded:" if config.redis.enabled else "REDIS_ENABLED=false"
        raise ConfigError([f"{found}: there is no shared server to look into; set REDIS_URL to the one that you mean"])
    async with Redis(config.redis) as redis:
        yield Cache(redis, config.key_prefix, local_entries=0, on_outage="raise", patience_s=5.0)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr when that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _looked_at, _of: None
        return
    from rich.console import Console  # noqa: PLC0415 - only for a terminal
    from rich.progress import Progress  # noqa: PLC0415

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("keys", total=None)
        yield lambda looked_at, of: shown.update(task, completed=looked_at, total=of)


def _masked(name: str, value: Any) -> Any:
    if any(word in name.lower() for word in _SECRET_WORDS):
        return _MASK
    if isinstance(value, dict):
        return {field: _masked(str(field), each) for field, each in value.items()}
    if isinstance(value, list):
        return [_masked("", each) for each in value]
    return value


def _json(value: Any, indent: int = 0) -> str:
    encoded = msgspec.json.encode(value, enc_hook=repr)
    return (msgspec.json.format(encoded, indent=indent) if indent else encoded).decode()
