"""What the README shows is what runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
