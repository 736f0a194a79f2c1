"""`aegis demo`: the main job on this machine, shown while it runs and judged at its end."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from aegis.cli._app import EXIT_BROKEN, new_app, run
from aegis.cli._groups import AsSentinel, ClusterSizes, group_of
from aegis.config import Config
from aegis.dashboard import Dashboard
from aegis.demo.orchestrate import Options, Progress
from aegis.demo.orchestrate import run as run_demo
from aegis.demo.report import Report, as_table
from aegis.demo.show import ProgressShown, as_samples
from aegis.embedded import EmbeddedValkey
from aegis.telemetry import MetricsServer
from aegis.upstream.simulator import check_replay

app = new_app()


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
    cluster: ClusterSizes = "",
    sentinel: AsSentinel = False,
    json: Annotated[bool, typer.Option("--json", help="The report as one JSON object on the last line.")] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port of the dashboard; 0: any free one. [default: PORT]")
    ] = None,
) -> None:
    """
    Run the main job on this machine, and judge it.

    Starts real servers, simulated upstreams and several collectors; needs no account and no configuration. Exits with 0
    only if every rule held. A page on PORT shows the run while it lasts, and with METRICS_ENABLED so does METRICS_PORT.

    Example: aegis demo --seconds 20 --processes 4 --compare

    Example: aegis demo --cluster 3+3
    """
    config = Config.load()
    if replay is not None:
        check_replay(replay)
    reports: dict[str, Report] = {}
    for shared in (True, False) if compare else (True,):
        name = "one quota for all (aegis)" if shared else "each process for itself"
        redis = group_of(cluster, sentinel=sentinel) or EmbeddedValkey()
        options = Options(seconds, processes, replay, shared, _metrics(config), redis)
        reports[name] = run(_shown(name, options, config, config.port if port is None else port))
    first, *others = reports.values()
    if json:
        compared = {"compare": others[0].as_json()} if others else {}
        typer.echo(msgspec.json.encode({**first.as_json(), **compared}).decode())
    else:
        Console().print(as_table(reports))
        for problem in first.problems:
            typer.echo(f"broken: {problem}", err=True)
    if not first.ok:
        raise typer.Exit(EXIT_BROKEN)


def _metrics(config: Config) -> dict[str, str]:
    """What the processes of the demo need, so that their numbers stand beside the report's on METRICS_PORT."""
    settings = config.metrics
    if not settings.enabled or not settings.port:
        return {}
    return {"METRICS_ENABLED": "true", "METRICS_PORT": str(settings.port), "METRICS_HOST": settings.host}


async def _shown(name: str, options: Options, config: Config, port: int) -> Report:
    """One run of the demo with everything that shows it: progress, dashboard, metrics."""
    newest: list[Progress] = []
    async with contextlib.AsyncExitStack() as stack:
        page = await stack.enter_async_context(Dashboard(port))
        if config.metrics.enabled:
            settings = config.metrics
            stack.enter_context(
                MetricsServer(lambda: as_samples(newest), settings.port, process="demo", host=settings.host)
            )
        shown = stack.enter_context(ProgressShown(f"{name}, to be seen on {page.url}"))

        async def on_progress(progress: Progress) -> None:
            newest[:] = [progress]
            await page.tell("run", progress)
            shown.update(progress)

        return await run_demo(options, on_progress, alongside=page.live)
