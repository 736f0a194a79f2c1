"""
The command `aegis`: one file per command, and the table that lists them.

To add a command, add `aegis/cli/NAME.py` with a Typer application `app = new_app()` (one function: the command itself;
several: its subcommands), and one line to `COMMANDS` below. The line repeats the first sentence of the command's help,
because `aegis --help` imports no command at all: that keeps it under 300 ms. So a command's file may import at its top
whatever it needs.

    app = new_app()

    @app.command()
    def tail(topic: str) -> None:
        "Show a topic live."
        run(follow(topic))  # to the end, or to Ctrl-C or SIGTERM, which cancel it, and it cleans up

Raise errors of `aegis.errors` and let them pass: they become one line on stderr and an exit code. Exit codes: 0 all is
well; 1 something failed or a rule was broken; 2 the command line is wrong; 78 the configuration is wrong (EX_CONFIG of
sysexits.h); 130 interrupted. Results go to stdout, progress and complaints to stderr; `--json` where a script reads.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from aegis.cli._app import EXIT_BROKEN, EXIT_CONFIG, CommandTable, new_app
from aegis.errors import AegisError, ConfigError

#: Command to what it does; its module is `aegis.cli.NAME`. In the order in which `aegis --help` shows them.
COMMANDS = {
    "demo": "Run the main job on this machine, and judge it.",
    "up": "Start real servers, and print the variables that lead to them.",
    "collect": "Collect quotes, charts and disclosures from the real upstreams.",
    "doctor": "Look at everything aegis needs, and say what to do.",
    "config": "Check the configuration, show it, or list every variable.",
    "db": "Apply the migrations of a database, or show them.",
    "cache": "Look into the shared cache, and remove from it.",
    "tail": "Show a topic live.",
    "limits": "Show how every limit stands, live; changes nothing.",
    "sim": "Run the simulator of KIS, DART and Naver alone.",
}

app = new_app(cls=CommandTable.of(COMMANDS), no_args_is_help=True, add_completion=True)


def main() -> None:
    """Run the command line; every error of ours becomes one line on stderr and an exit code."""
    try:
        app(prog_name="aegis")
    except ConfigError as exc:
        _fail(str(exc), EXIT_CONFIG)
    except AegisError as exc:
        _fail(str(exc), EXIT_BROKEN)


def _fail(message: str, code: int) -> None:
    sys.stderr.write(f"aegis: {message}\n")
    sys.exit(code)


def _show_versions(*, wanted: bool) -> None:
    if wanted:
        from aegis.cli._versions import version_lines  # noqa: PLC0415 - only when asked for

        typer.echo("\n".join(version_lines()))
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=lambda wanted: _show_versions(wanted=wanted),
            is_eager=True,
            help="Versions that matter.",
        ),
    ] = False,
) -> None:
    """Many processes, one quota, one token, one book of quotes."""
