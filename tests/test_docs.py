"""What the README shows is what runs."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import aegis.upstream
from aegis.cli import COMMANDS
from aegis.config import registry

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_first_example_of_the_readme_is_the_file_that_runs():
    """The README and `examples/first.py` cannot drift apart."""
    shown = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert (ROOT / "examples" / "first.py").read_text().endswith(shown)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(example: Path):
    """Every example ends well, on a machine with nothing but the checkout."""
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr


def test_both_commands_of_the_readme_are_targets_of_the_makefile():
    """`make demo` and `make test` exist, and `make` alone lists every target with one line each."""
    listed = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("demo", "test", "lint", "bench", "clean"):
        assert re.search(rf"^  make {target} +\S", listed, re.MULTILINE)
        assert f"make {target}" in README or target in {"lint", "bench", "clean"}


DOCS = ROOT / "docs"
#: Pages whose programs are run by a test of their own room.
RUN_ELSEWHERE = {
    page.name
    for page in DOCS.glob("*.md")
    for test in (ROOT / "tests").glob("*/test_*docs.py")
    if re.search(rf"\b{re.escape(page.name)}\b", test.read_text())
}
PROGRAMS = [
    pytest.param(program, id=f"{page.name}-{at}")
    for page in sorted(DOCS.glob("*.md"))
    if page.name not in RUN_ELSEWHERE
    for at, program in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_of_the_documentation_run(program: str, tmp_path: Path):
    """Each in a process and a directory of its own, with warnings as errors."""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_links_between_pages_lead_somewhere():
    """No page points at one that was moved."""
    for page in (*ROOT.glob("*.md"), *DOCS.glob("*.md")):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_index_names_every_page():
    """Whoever adds a page adds a line to docs/index.md."""
    index = (DOCS / "index.md").read_text()
    missing = [page.name for page in DOCS.glob("*.md") if page.name != "index.md" and f"]({page.name})" not in index]
    assert not missing, f"add {missing} to docs/index.md"


def spans(page: Path) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", prose(page.read_text())))


PAGES = sorted([*ROOT.glob("README*.md"), *DOCS.glob("*.md")])


VARIABLES = {variable.name for variable in registry()}
FAMILIES = r"((?:REDIS|DB|DATABASE|HTTP|KIS|DART|NAVER|LOG|METRICS|AEGIS)_[A-Z_]+)(?:=.*)?"
#: Presets look like variables; the proxy is everybody's; and one slip is shown as a slip.
NOT_OURS = {name for name in aegis.upstream.__all__ if name.isupper()} | {"HTTP_PROXY", "KIS_APP_SECRETT"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_in_the_text_exist(page: Path):
    """Every `aegis.x.Y` can be imported, every `aegis command` is one, every variable is in the registry."""
    for span in spans(page):
        # Names in small letters alone may also be those of loggers and metrics.
        if re.fullmatch(r"aegis(\.\w+)*\.[A-Z]\w*(\.\w+)*(\(.*\))?", span):
            assert resolved(span.partition("(")[0]), span
        command = re.match(r"aegis (?!-)(\w+)", span)
        if command:
            assert command[1] in COMMANDS, span
        variable = re.fullmatch(FAMILIES, span)
        if variable:
            name = variable[1]
            assert name.removesuffix("_FILE") in VARIABLES or name in VARIABLES | NOT_OURS, (
                f"{name} is not in the registry"
            )


def resolved(dotted: str) -> bool:
    """A module, or a chain of attributes of one."""
    parts = dotted.split(".")
    for at in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:at]))
        except ImportError:
            continue
        return all(hasattr(value, part) and (value := getattr(value, part)) is not None for part in parts[at:])
    return False


# --- the Korean README ------------------------------------------------------------------------------------------------

KOREAN = (ROOT / "README.ko.md").read_text()


def programs(page: str) -> list[str]:
    return re.findall(r"```\w*\n.*?```", page, re.DOTALL)


def prose(page: str) -> str:
    return re.sub(r"```\w*\n.*?```", "", page, flags=re.DOTALL)


def marks(text: str) -> list[str]:
    """What is not translated: code and numbers, in any order (a sentence is built otherwise)."""
    numbers = re.findall(r"\d+(?:\.\d+)?", re.sub(r"`[^`]*`", "", text))
    return sorted(re.findall(r"`[^`]+`", text) + numbers)


def test_the_korean_readme_has_the_same_programs():
    """Word for word, comments included: they are the files that run."""
    assert programs(KOREAN) == programs(README)


def test_the_korean_readme_has_the_same_tables():
    """As many rows, with the same code and numbers in each."""
    rows = [[line for line in prose(page).splitlines() if line.startswith("|")] for page in (README, KOREAN)]
    assert len(rows[0]) == len(rows[1])
    for english, korean in zip(*rows, strict=True):
        assert marks(english) == marks(korean), korean
        assert english.count("|") == korean.count("|")


def test_the_korean_readme_has_the_same_sections_and_links():
    """In the same order; each README points at the other instead of itself."""
    levels = [re.findall(r"^#+(?= )", prose(page), re.MULTILINE) for page in (README, KOREAN)]
    assert levels[0] == levels[1]
    links = [re.findall(r"\]\(([^)]+)\)", page) for page in (README, KOREAN)]
    assert [link.replace("README.ko.md", "README.md") for link in links[0]] == links[1]


def test_the_korean_readme_names_the_same_things_in_its_text():
    """Every command, variable and code of the English text."""
    text = [
        "\n".join(line for line in prose(page).splitlines() if not line.startswith("|")) for page in (README, KOREAN)
    ]
    code = [sorted(re.findall(r"`[^`]+`", page)) for page in text]
    assert code[0] == code[1]
