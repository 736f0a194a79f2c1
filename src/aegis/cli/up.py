"""`aegis up`: real servers from wheels for as long as you like, and the variables that lead to them."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from enum import StrEnum
from typing import Annotated

import msgspec
import typer

from aegis.cli._app import AsJson, new_app, run
from aegis.cli._groups import AsSentinel, ClusterSizes, group_of
from aegis.config import Config, child_environ
from aegis.embedded import EmbeddedCluster, EmbeddedPostgres, EmbeddedSentinel, EmbeddedValkey, free_port

app = new_app()

_END_TIMEOUT_S = 10.0
_EXIT_NOT_RUNNABLE, _EXIT_NOT_FOUND = 126, 127  # as a shell does
#: What the shell says about other servers does not reach the command; everything else does.
_OTHER_SERVERS = ("REDIS_", "DB_", "DATABASE_")


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
    cluster: ClusterSizes = "",
    sentinel: AsSentinel = False,
    postgres: Annotated[bool, typer.Option(help="A PostgreSQL as well.")] = True,
    page: Annotated[bool, typer.Option(help="The live page of what is on them, on PORT.")] = True,
    json: AsJson = False,
) -> None:
    """
    Start real servers, and print the variables that lead to them.

    They hold their data in a temporary directory, listen on the loopback only, and are gone when this ends: on Ctrl-C,
    with the command, and even when it is killed. Exits with the command's exit code. A page on PORT shows quotes that
    are published, limits, and processes that open `Runtime(config, vitals="name")`.

    Example: aegis up -- pytest -q

    Example: aegis up --cluster 3+3 --no-postgres
    """
    if sum((bool(cluster), sentinel, redis is not Kind.SINGLE)) > 1:
        raise typer.BadParameter("--redis, --cluster and --sentinel exclude each other")
    server: EmbeddedValkey | EmbeddedCluster | EmbeddedSentinel | None
    sizes = cluster or ("3+3" if redis is Kind.CLUSTER else "")
    server = group_of(sizes, sentinel=sentinel or redis is Kind.SENTINEL)
    if redis is Kind.SINGLE and server is None:
        server = EmbeddedValkey(port=0)
    with ExitStack() as servers:
        variables = _started(servers, server, postgres=postgres)
        if command:
            raise typer.Exit(run(_with(command, variables)))
        run(_stay(variables, page=page and redis is not Kind.NONE, json=json))


async def _stay(variables: Mapping[str, str], *, page: bool, json: bool) -> None:
    """Say where they are, and be there until we are interrupted."""
    async with AsyncExitStack() as stack:
        shown = await stack.enter_async_context(_page(variables)) if page else ""
        if json:
            typer.echo(msgspec.json.encode(variables))
        else:
            typer.echo("\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items()))
            typer.echo(f"running{shown}; Ctrl-C ends them", err=True)
        sys.stdout.flush()
        await asyncio.Event().wait()


@asynccontextmanager
async def _page(variables: Mapping[str, str]) -> AsyncIterator[str]:
    """The live page of what is on these servers, with the accounts and the PORT of the user's configuration."""
    from aegis.dashboard import Dashboard  # noqa: PLC0415 - as long to import as a server to start; not all want it

    ours = Config.load(variables, None)
    config = Config.load().model_copy(update={"redis": ours.redis, "database": ours.database})
    async with Dashboard(config.port) as dashboard, dashboard.live(config, database="DATABASE_URL" in variables):
        yield f", to be seen on {dashboard.url}"


def _started(
    servers: ExitStack, redis: EmbeddedValkey | EmbeddedCluster | EmbeddedSentinel | None, *, postgres: bool
) -> dict[str, str]:
    variables = {}
    typer.echo("starting the servers", err=True)
    if redis is not None:
        servers.enter_context(redis)
        variables["REDIS_URL"] = redis.url
    if postgres:
        variables["DATABASE_URL"] = servers.enter_context(EmbeddedPostgres(port=free_port())).url
    return variables


async def _with(command: list[str], variables: Mapping[str, str]) -> int:
    """The exit code of the command; it is asked to end, and then made to, when we are interrupted."""
    environ = child_environ(variables, without=_OTHER_SERVERS)
    try:
        process = await asyncio.create_subprocess_exec(*command, env=environ)
    except OSError as exc:
        typer.echo(f"aegis: cannot run {command[0]}: {exc.strerror}", err=True)
        return _EXIT_NOT_FOUND if isinstance(exc, FileNotFoundError) else _EXIT_NOT_RUNNABLE
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
