"""The programs in the documentation of the upstreams run as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "upstream.md").read_text()


@pytest.mark.timeout(120)  # three servers start beside whatever else runs
@pytest.mark.parametrize("program", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL), ids=["use", "order", "other"])
def test_a_program_of_the_documentation_runs(program):
    """In a process of its own, with warnings as errors; no secret of it is printed."""
    command = (sys.executable, "-W", "error", "-c", program)
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    for secret in ("your app secret", "never shown", "0" * 40):
        assert secret not in done.stdout + done.stderr
