"""
What all benchmarks have in common: their options, their ratios, and how they say what they found.

A report is a question, rows of figures, and what was measured on what. It goes to the standard output, as a table or
with `--json` as JSON; how far the work is goes to the standard error.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

#: With more figures than that the table lies on its side.
_COLUMNS_MAX = 10


def options(
    doc: str, *, smoke: str = "one short round, to see that it runs", rounds: int = 0, seconds: float = 0.0
) -> argparse.ArgumentParser:
    """A parser of `--smoke`, `--json`, `--rounds` and `--seconds` where there are defaults, and the workers' plan."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help=smoke)
    parser.add_argument("--json", action="store_true", help="the report as JSON instead of a table")
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds, help=f"{rounds} unless given; interleaved")
    if seconds:
        parser.add_argument("--seconds", type=float, default=seconds, help=f"of one measurement; {seconds:g}")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    return parser


def progress(*words: object) -> None:
    """How far it is."""
    print(*words, file=sys.stderr, flush=True)


# --- figures ---


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios within a round: what slows the machine in one round slows both."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 2)


def median(figures: Sequence[float], digits: int | None = None) -> float:
    """Rounded to so many digits, to a whole number without."""
    return round(statistics.median(figures), digits)


def spread(figures: Sequence[float], digits: int | None = None) -> list[float]:
    """The least and the largest."""
    return [round(min(figures), digits), round(max(figures), digits)]


# --- saying it ---


def report(question: str, rows: Sequence[Mapping[str, Any]], packages: Sequence[str], **facts: Any) -> dict[str, Any]:
    """The question, how it was asked (`facts`), on what, and the rows."""
    return {
        "question": question,
        **facts,
        "machine": f"{os.cpu_count()} vCPU, {platform.system()}, {platform.python_implementation()}",
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("aegis-infra", *packages)},
        "rows": list(rows),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def show(found: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a report."""
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    names = list(dict.fromkeys(name for row in found["rows"] for name in row))
    grid = [names, *([_cell(row.get(name)) for name in names] for row in found["rows"])]
    if len(names) > _COLUMNS_MAX:
        grid = [list(column) for column in zip(*grid, strict=True)]
    table = Table(title=found["question"], title_justify="left")
    for heading in grid[0]:
        table.add_column(escape(heading))
    for line in grid[1:]:
        table.add_row(*map(escape, line))
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table)
    console.print(f"{found['machine']}; {versions}", markup=False)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else "yes" if value else "NO"
    if isinstance(value, int | float):
        return f"{value:,}"
    if isinstance(value, list):
        return " to ".join(map(_cell, value)) if len(value) == 2 else ", ".join(map(_cell, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_cell(each)}" for name, each in value.items())
    return str(value)
