"""The arrows of the design: data flows one way, and only the configuration reads the environment."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "aegis"

#: Each level may import the levels before it; rooms of one level never import each other.
LEVELS = (
    ("errors",),
    ("backoff",),
    ("config",),
    ("redis", "database", "http", "embedded"),
    ("upstream", "telemetry", "gateway"),
    ("runtime",),
    ("demo", "dashboard", "doctor", "sync"),
    ("cli",),
    ("__main__",),
)
#: Stand outside the arrows: the package's own names (lazy) and what users' tests import.
OUTSIDE = {"__init__", "testing"}
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                if node.module == "aegis"
                else [node.module]
            )
        for name in names:
            parts = name.split(".")
            if parts[0] == "aegis" and len(parts) > 1:
                yield parts[1]


def test_every_room_has_its_place():
    """A new room must be given a level here."""
    assert {room_of(path) for path in FILES} - OUTSIDE <= LEVEL.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path: Path):
    """A file imports its own room and rooms of earlier levels, nothing else; nobody imports `testing`."""
    room = room_of(path)
    if room in OUTSIDE:
        return
    for other in imported_rooms(path):
        if other == "__version__":
            continue
        assert other != "testing", f"{path} imports what is for tests"
        assert other == room or LEVEL[other] < LEVEL[room], f"{path}: {room} must not import {other}"


ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
#: The files that may: the reader, and the one that makes environments for children.
READERS = {"config/_sources.py", "config/_children.py"}


def environment_reads(source: str) -> list[int]:
    """Lines that name the environment, whatever `os` was imported as; or `.env` files, whatever reads them."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT:
            lines.append(node.lineno)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names = {alias.name for alias in node.names}
            module = getattr(node, "module", None) or ""
            if (module in {"os", "posix"} and names & ENVIRONMENT) or "dotenv" in {module, *names}:
                lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_config_reads_the_environment(path: Path):
    """`os.environ` and its kin appear in two files of `config` alone, under whatever name."""
    found = environment_reads(path.read_text())
    assert not found or str(path.relative_to(SOURCE)) in READERS, f"{path}:{found}"


@pytest.mark.parametrize(
    "source",
    [
        "import os; os.environ['X']",
        "import os as o; o.getenv('X')",
        "from os import environ as e",
        "from os import getenv",
        "import dotenv",
        "from dotenv import load_dotenv",
    ],
)
def test_every_way_to_the_environment_is_seen(source):
    """The rule above cannot be got around by an alias."""
    assert environment_reads(source)


def test_importing_aegis_imports_no_room():
    """`import aegis` is quick: rooms come with their names."""
    import subprocess
    import sys

    code = "import sys, aegis; print([m for m in sys.modules if m.startswith('aegis.')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
