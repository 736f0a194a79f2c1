"""The program in the documentation of the page runs as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "dashboard.md").read_text()


def test_the_program_of_the_documentation_runs():
    """In a process of its own, with warnings as errors."""
    [program] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    command = (sys.executable, "-W", "error", "-c", program)
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("http://127.0.0.1:")
