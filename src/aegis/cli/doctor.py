"""`aegis doctor`: what is wrong with everything aegis stands on, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from aegis.cli._app import EXIT_BROKEN, EXIT_CONFIG, AsJson, EnvFile, new_app, run
from aegis.config import Examined, examine
from aegis.doctor import AREAS, Finding, Verdict, examine_all

app = new_app()

_LOOKS = {
    Verdict.OK: ("ok", typer.colors.GREEN),
    Verdict.SKIPPED: ("--", typer.colors.BRIGHT_BLACK),
    Verdict.WARNING: ("warning", typer.colors.YELLOW),
    Verdict.FAILED: ("FAILED", typer.colors.RED),
}


def _area(name: str) -> str:
    if name not in AREAS:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(AREAS)}")
    return name


@app.command()
def doctor(
    areas: Annotated[
        list[str] | None,
        typer.Argument(help=f"Only these: {', '.join(AREAS)}.", autocompletion=lambda: list(AREAS)),
    ] = None,
    request: Annotated[
        bool, typer.Option("--request", help="Also make one real request to each upstream; each takes a permit.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as failures.")] = False,
    env_file: EnvFile = Path(".env"),
    json: AsJson = False,
) -> None:
    """
    Look at everything aegis needs, and say what to do.

    Configuration, Redis, PostgreSQL, upstreams (name and TLS; requests only with --request) and ports. Exits with 0 if
    nothing has failed, with 78 if the configuration cannot be used, else with 1. Changes nothing.

    Example: aegis doctor redis postgres --strict
    """
    wanted = [_area(name) for name in areas or AREAS]
    examined = examine(env_file=env_file)
    findings = run(_told(examined, wanted, request=request, quiet=json))
    bad = {Verdict.FAILED, Verdict.WARNING} if strict else {Verdict.FAILED}
    failed = [finding for finding in findings if finding.verdict in bad]
    if json:
        typer.echo(msgspec.json.encode({"ok": not failed, "findings": findings}))
    else:
        typer.echo(_summary(findings))
    if examined.config is None:
        raise typer.Exit(EXIT_CONFIG)
    if failed:
        raise typer.Exit(EXIT_BROKEN)


async def _told(examined: Examined, areas: Iterable[str], *, request: bool, quiet: bool) -> list[Finding]:
    findings: list[Finding] = []
    async for finding in examine_all(examined, areas={"configuration", *areas}, request=request):
        if not quiet:
            if not findings or findings[-1].area != finding.area:
                typer.secho(finding.area, bold=True)
            _tell(finding)
        findings.append(finding)
    return findings


def _tell(finding: Finding) -> None:
    word, color = _LOOKS[finding.verdict]
    typer.echo(f"  {typer.style(f'{word:8}', fg=color)}{finding.check:18} {finding.seen}")
    if finding.remedy and finding.verdict in {Verdict.WARNING, Verdict.FAILED}:
        typer.echo(f"{'':28} -> {finding.remedy}")


def _summary(findings: Iterable[Finding]) -> str:
    verdicts = [finding.verdict for finding in findings]
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in Verdict if verdict in verdicts)
