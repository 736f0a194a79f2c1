"""
What a call tells: one structured event per attempt and one per call, through the standard library's logging.

Levels: attempt and call DEBUG, retry WARNING, failed call ERROR. Fields stand in `extra` as `http_*`. Every text that
comes here is masked already.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from aegis.http.records import Attempt

logger = logging.getLogger("aegis.http")
logger.addHandler(logging.NullHandler())


def log_attempt(level: int, event: str, method: str, url: str, attempt: Attempt) -> None:
    """One line about one attempt."""
    fields = {
        "http_method": method,
        "http_url": url,
        "http_attempt": attempt.number,
        "http_permit_wait_s": attempt.permit_wait_s,
        "http_status": attempt.status,
        "http_bytes": attempt.body_bytes,
        "http_elapsed_s": attempt.elapsed_s,
        "http_outcome": attempt.outcome,
    }
    _log(level, event, fields, attempt.reason)


def log_call(
    level: int, method: str, url: str, history: Sequence[Attempt], *, outcome: str, elapsed_s: float, detail: str
) -> None:
    """One line about the whole call."""
    fields = {
        "http_method": method,
        "http_url": url,
        "http_attempts": len(history),
        "http_permit_wait_s": sum(attempt.permit_wait_s for attempt in history),
        "http_status": history[-1].status if history else None,
        "http_bytes": sum(attempt.body_bytes for attempt in history),
        "http_elapsed_s": elapsed_s,
        "http_outcome": outcome,
    }
    _log(level, "http call failed" if level >= logging.ERROR else "http call", fields, detail)


def _log(level: int, event: str, fields: dict[str, Any], detail: str) -> None:
    text = ": ".join(filter(None, (fields["http_outcome"], detail)))
    logger.log(level, "%s %s %s: %s", event, fields["http_method"], fields["http_url"], text, extra=fields)
