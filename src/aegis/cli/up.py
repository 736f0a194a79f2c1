"""`aegis up`: real servers from wheels for as long as you like, and the variables that lead to them."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from enum import StrEnum
from typing import Annotated

import msgspec
import typer

from aegis.cli._app import AsJson, new_app, run
from aegis.config import child_environ
from aegis.embedded import EmbeddedCluster, EmbeddedPostgres, EmbeddedSentinel, EmbeddedValkey, free_port

app = new_app()

_END_TIMEOUT_S = 10.0


class Kind(StrEnum):
    """What REDIS_URL leads to."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"
    NONE = "none"


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": False})
def up(
    command: Annotated[
        list[str] | None, typer.Argument(help="A command to run with them, behind --; they end with it.")
    ] = None,
    redis: Annotated[Kind, typer.Option(help="One Valkey, a Sentinel group, or a cluster.")] = Kind.SINGLE,
    postgres: Annotated[bool, typer.Option(help="A PostgreSQL as well.")] = True,
    json: AsJson = False,
) -> None:
    """
    Start real servers, and print the variables that lead to them.

    They hold their data in a temporary directory, listen on the loopback only, and are gone when this ends: on Ctrl-C,
    with the command, and even when it is killed. Exits with the command's exit code.

    Example: aegis up -- pytest -q

    Example: aegis up --redis cluster --no-postgres
    """
    with ExitStack() as servers:
        variables = _started(servers, redis, postgres=postgres)
        if command:
            raise typer.Exit(run(_with(command, variables)))
        if json:
            typer.echo(msgspec.json.encode(variables))
        else:
            typer.echo("\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items()))
            typer.echo("running; Ctrl-C ends them", err=True)
        sys.stdout.flush()
        run(asyncio.Event().wait())


def _started(servers: ExitStack, redis: Kind, *, postgres: bool) -> dict[str, str]:
    variables = {}
    typer.echo("starting the servers", err=True)
    if redis is Kind.SINGLE:
        variables["REDIS_URL"] = servers.enter_context(EmbeddedValkey(port=0)).url
    elif redis is Kind.SENTINEL:
        variables["REDIS_URL"] = servers.enter_context(EmbeddedSentinel()).url
    elif redis is Kind.CLUSTER:
        variables["REDIS_URL"] = servers.enter_context(EmbeddedCluster()).url
    if postgres:
        variables["DATABASE_URL"] = servers.enter_context(EmbeddedPostgres(port=free_port())).url
    return variables


async def _with(command: list[str], variables: Mapping[str, str]) -> int:
    """The exit code of the command; it is asked to end, and then made to, when we are interrupted."""
    process = await asyncio.create_subprocess_exec(*command, env=child_environ(variables))
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _END_TIMEOUT_S)
            except TimeoutError:
                process.kill()
                await process.wait()
