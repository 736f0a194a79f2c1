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
    ("upstream", "telemetry"),
    ("runtime",),
    ("demo", "dashboard"),
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


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_config_reads_the_environment(path: Path):
    """`os.environ` and `os.getenv` appear in `config` alone."""
    if room_of(path) == "config":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            assert node.attr not in {"environ", "getenv", "environb", "putenv"}, f"{path}:{node.lineno}"


def test_importing_aegis_imports_no_room():
    """`import aegis` is quick: rooms come with their names."""
    import subprocess
    import sys

    code = "import sys, aegis; print([m for m in sys.modules if m.startswith('aegis.')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
