"""What all commands have in common: how they look, how they are found, how they run and end."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

ResultT = TypeVar("ResultT")

EnvFile = Annotated[Path, typer.Option(help="The file that stands below the environment.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")]

EXIT_BROKEN, EXIT_USAGE, EXIT_CONFIG, EXIT_INTERRUPTED = 1, 2, 78, 130


def new_app(**settings: Any) -> typer.Typer:
    """
    A Typer application that looks like the others.

    Help is plain text: the decorated one costs a quarter of a second of imports, and reads worse in a pipe.
    """
    looks = {
        "add_completion": False,
        "rich_markup_mode": None,
        "pretty_exceptions_enable": False,
        "context_settings": {"help_option_names": ["-h", "--help"]},
    }
    return typer.Typer(**(looks | settings))


class CommandTable(TyperGroup):
    """Commands known by name and one line of help; each is imported only when it is called or completed."""

    table: Mapping[str, str] = {}

    @classmethod
    def of(cls, table: Mapping[str, str]) -> type[CommandTable]:
        """The group of these commands; Typer wants a class."""
        return type("Commands", (cls,), {"table": table})

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, line in self.table.items():
            self.add_command(TyperCommand(name, help=line, rich_markup_mode=None))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The real command in place of the line that stands for it."""
        name, found, rest = super().resolve_command(ctx, args)
        if name is None or found is None:
            return name, found, rest
        command = typer.main.get_command(import_module(f"aegis.cli.{name}").app)
        command.name = name
        return name, command, rest


def run(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run to the end, or to Ctrl-C or SIGTERM: both cancel the work, which cleans up behind itself."""
    import asyncio  # noqa: PLC0415 - 30 ms, which `aegis --help` can do without
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
