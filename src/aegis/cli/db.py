"""`aegis db`: apply migrations, and show which are applied."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from aegis.cli._app import EXIT_BROKEN, AsJson, EnvFile, new_app, run
from aegis.config import Config
from aegis.database import MIGRATIONS, Database, Migration

app = new_app(no_args_is_help=True)

Directory = Annotated[
    Path, typer.Option("--path", help="A directory of NNNN_name.sql.", show_default="those that come with aegis")
]


@app.callback()
def db() -> None:
    """Apply the migrations of a database, or show them."""


@app.command()
def migrate(
    path: Directory = MIGRATIONS,
    lock_timeout: Annotated[
        float, typer.Option(min=0.0, help="Seconds to wait for another process that migrates.")
    ] = 60.0,
    env_file: EnvFile = Path(".env"),
    json: AsJson = False,
) -> None:
    """
    Apply what is pending, in order, once, however many processes ask.

    Exits with 1 if a file was edited, comes too late or fails; the files before it stay applied.

    Example: aegis db migrate --path migrations
    """
    done = run(_migrate(_config(env_file), path, lock_timeout))
    if json:
        typer.echo(msgspec.json.encode({"applied": done}))
    else:
        typer.echo(f"applied {len(done)}: {', '.join(done)}" if done else "nothing is pending")


@app.command()
def status(
    path: Directory = MIGRATIONS,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if anything is pending or refused.")] = False,
    env_file: EnvFile = Path(".env"),
    json: AsJson = False,
) -> None:
    """
    Show every migration, since when it is applied, and what is wrong with it. Changes nothing.

    Example: aegis db status --check
    """
    found = run(_status(_config(env_file), path))
    if json:
        typer.echo(msgspec.json.encode(found))
    else:
        typer.echo("\n".join(map(_line, found)) or "there are no migrations")
    if check and any(not each.applied or each.refused for each in found):
        raise typer.Exit(EXIT_BROKEN)


def _config(env_file: Path) -> Config:
    return Config.load(env_file=env_file)


async def _migrate(config: Config, path: Path, lock_timeout_s: float) -> list[str]:
    async with Database(config.database) as database:
        return await database.migrate(
            path, lock_timeout_s=lock_timeout_s, on_file=lambda name: typer.echo(f"applying {name}", err=True)
        )


async def _status(config: Config, path: Path) -> list[Migration]:
    async with Database(config.database) as database:
        return await database.migration_status(path)


def _line(each: Migration) -> str:
    state = f"{each.applied_at:%Y-%m-%d %H:%M:%S %Z}" if each.applied_at else "pending"
    return f"{each.name:40} {state:24} {each.problem}".rstrip()
