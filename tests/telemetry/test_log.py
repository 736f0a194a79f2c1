"""Log lines: one look for all, secrets masked, and silence without set-up."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import logging, sys
from aegis.config import LogConfig
from aegis.telemetry import configure_logging
configure_logging(LogConfig(level="info", format="json"))
logging.getLogger("users.own").info("hello %s", "you", extra={"account": "a-1"})
logging.getLogger("aegis.http").warning("GET http://x/?crtfc_key=SECRET1", extra={"appsecret": "SECRET2"})
logging.getLogger("aegis.http").debug("too detailed")
try:
    raise ValueError("token=SECRET3")
except ValueError:
    logging.getLogger("aegis").exception("failed")
"""


def stderr_of(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr


def test_json_lines_hold_fields_and_no_secret():
    """Our records and users' own, with their extras; secrets masked in text, fields and tracebacks."""
    lines = [json.loads(line) for line in stderr_of(CODE).splitlines()]
    assert [line["event"] for line in lines[:1]] == ["hello you"]
    assert lines[0]["account"] == "a-1"
    assert lines[1]["appsecret"] == "***"
    assert len(lines) == 3
    assert "SECRET" not in json.dumps(lines)


def test_importing_configures_nothing():
    """A process that does not ask prints nothing below a warning and keeps its handlers."""
    code = "import logging, aegis.runtime, aegis.telemetry; print(logging.getLogger().handlers)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
