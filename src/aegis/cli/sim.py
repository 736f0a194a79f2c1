"""`aegis sim`: the simulator alone; its own command line does the work."""

from __future__ import annotations

import typer

from aegis.cli._app import new_app
from aegis.upstream.simulator.command import main

app = new_app()


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def sim(context: typer.Context) -> None:
    """Run the simulator of KIS, DART and Naver alone."""
    main(context.args)
