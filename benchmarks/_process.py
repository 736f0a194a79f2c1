"""A process for each measurement, so that nobody's imports, caches or garbage are in another's way."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def in_process(module: str, plan: list[Any], timeout_s: float) -> Any:
    """One measurement: `python -m module --worker PLAN`, which prints its result as the last line."""
    command = [sys.executable, "-m", module, "--worker", json.dumps(plan)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode:
        raise SystemExit(f"{module} {plan}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])
