"""The command line without the start of a process: two seconds of imports for each call are not what is tested."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis.cli import main
from aegis.config import child_environ

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`command("config", "check", REDIS_DB="3")` in an empty directory; nothing else of ours is in the environment."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        wanted = child_environ(environ)
        for name in os.environ.keys() - wanted.keys():
            monkeypatch.delenv(name)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["aegis", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return subprocess.CompletedProcess(args, code if isinstance(code, int) else int(code is not None), out, err)

    return run
