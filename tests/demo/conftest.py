"""The command `aegis demo` as a user runs it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

DEMO = (sys.executable, "-m", "aegis", "demo", "--port", "0")


@pytest.fixture
def run_demo() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `aegis demo` with these arguments and variables to its end."""

    def run(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*DEMO, *args], capture_output=True, text=True, timeout=110, check=False, env={**os.environ, **environ}
        )

    return run


@pytest.fixture
def running_demo() -> Callable[..., AbstractContextManager[tuple[subprocess.Popen[str], str]]]:
    """A long demo with two collectors, once every process is there; and the URL of its page."""

    @contextlib.contextmanager
    def running(**environ: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
        with subprocess.Popen(
            [*DEMO, "--seconds", "60", "--processes", "2"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, **environ},
        ) as demo:  # fmt: skip
            try:
                page = re.search(r"http://\S+/", demo.stderr.readline())[0]
                next(line for line in demo.stderr if " s of 60" in line)
                yield demo, page
            finally:
                demo.kill()

    return running
