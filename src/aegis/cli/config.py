"""`aegis config`: check, show, and print what is made from the registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from pydantic import SecretStr

from aegis.cli._app import EXIT_CONFIG, AsJson, EnvFile, new_app
from aegis.cli.doctor import doctor
from aegis.config import Config, Examined, Variable, docs_text, examine, example_text, registry
from aegis.errors import ConfigError

app = new_app(no_args_is_help=True)

_TAIL_CHARS, _TAIL_LENGTH_MIN = 4, 16  #: of a shorter secret, four characters would be too much of it


@app.callback()
def config() -> None:
    """Check the configuration, show it, or list every variable."""


@app.command()
def check(
    env_file: EnvFile = Path(".env"),
    connect: Annotated[
        bool, typer.Option("--connect", help="Also connect to Redis and PostgreSQL, as `aegis doctor` does.")
    ] = False,
    json: AsJson = False,
) -> None:
    """
    Read everything and say what is wrong; touches no network unless told to.

    Exits with 78 if the configuration cannot be used, with --connect also with 1 if a server behind it cannot.

    Example: aegis config check --env-file staging.env
    """
    if connect:
        doctor(["redis", "postgres"], env_file=env_file, json=json)
        return
    examined = examine(env_file=env_file)
    if json:
        found = {"ok": examined.config is not None, "problems": examined.problems, "warnings": examined.warnings}
        typer.echo(msgspec.json.encode(found))
        raise typer.Exit(0 if examined.config else EXIT_CONFIG)
    for warning in examined.warnings:
        typer.echo(f"warning: {warning}", err=True)
    usable = _usable(examined)
    count = sum(variable.name in examined.settings for variable in registry())
    typer.echo(f"the configuration is fine; {count} of {len(registry())} variables are set, {usable.fingerprint()}")


@app.command()
def show(
    names: Annotated[list[str] | None, typer.Argument(help="Variables, or beginnings of their names.")] = None,
    env_file: EnvFile = Path(".env"),
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not the default.")] = False,
    hint: Annotated[
        bool, typer.Option("--hint", help="Of secrets, the length and, of long ones, the last four characters.")
    ] = False,
    json: AsJson = False,
) -> None:
    """
    Every variable: its value, and where that comes from. Secrets are masked.

    Example: aegis config show REDIS_ KIS_IS_VIRTUAL --changed
    """
    examined = examine(env_file=env_file)
    usable = _usable(examined)
    rows = [
        {
            "variable": variable.name,
            "value": _shown(variable, variable.value(usable), hint=hint),
            "source": source,
            "secret": variable.secret,
        }
        for variable in registry()
        if variable.name.startswith(tuple(names or ("",)))
        for source in (examined.source(variable),)
        if source != "default" or not changed
    ]
    if json:
        typer.echo(msgspec.json.encode(rows))
    else:
        typer.echo("\n".join(_columns(rows)))


@app.command()
def example() -> None:
    """
    Print what stands in `.env.example`: every variable, commented out.

    Example: aegis config example > .env
    """
    typer.echo(example_text(), nl=False)


@app.command()
def docs() -> None:
    """
    Print the page `docs/configuration.md`: the rules and every variable.

    Example: aegis config docs | less
    """
    typer.echo(docs_text(), nl=False)


def _usable(examined: Examined) -> Config:
    if examined.config is None:
        raise ConfigError(examined.problems)
    return examined.config


def _shown(variable: Variable, value: Any, *, hint: bool) -> str:
    text = variable.text(value)
    if not hint or not isinstance(value, SecretStr):
        return text
    secret = value.get_secret_value()
    tail = f" ending in {secret[-_TAIL_CHARS:]}" if len(secret) >= _TAIL_LENGTH_MIN else ""
    return f"{text} ({len(secret)} characters{tail})"


def _columns(rows: list[dict[str, Any]]) -> Iterator[str]:
    widths = [max((len(row[name]) for row in rows), default=0) for name in ("variable", "value")]
    for row in rows:
        yield f"{row['variable']:{widths[0]}}  {row['value']:{widths[1]}}  {row['source']}"
