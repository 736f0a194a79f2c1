"""
What a call tells: one structured event per attempt and one per call, through the standard library's logging.

Levels: attempt and call DEBUG, retry WARNING, failed call ERROR. Fields stand in `extra` as `http_*`. Every text that
comes here is masked already.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from aegis.http.records import CallRecord, Observe

logger = logging.getLogger("aegis.http")
logger.addHandler(logging.NullHandler())


def log_attempt(level: int, event: str, call: CallRecord, detail: str = "") -> None:
    """One line about the newest attempt of a call in progress."""
    attempt = call.attempts[-1]
    fields = _common(call) | {
        "http_attempt": attempt.number,
        "http_permit_wait_s": attempt.permit_wait_s,
        "http_status": attempt.status,
        "http_bytes": attempt.body_bytes,
        "http_elapsed_s": attempt.elapsed_s,
        "http_outcome": attempt.outcome,
    }
    _log(level, event, fields, "; ".join(filter(None, (attempt.reason, detail))))


def log_call(level: int, call: CallRecord, detail: str) -> None:
    """One line about the whole call."""
    fields = _common(call) | {
        "http_attempts": len(call.attempts),
        "http_permit_wait_s": sum(attempt.permit_wait_s for attempt in call.attempts),
        "http_status": call.attempts[-1].status if call.attempts else None,
        "http_bytes": sum(attempt.body_bytes for attempt in call.attempts),
        "http_elapsed_s": call.elapsed_s,
        "http_outcome": call.outcome,
    }
    _log(level, "http call failed" if level >= logging.ERROR else "http call", fields, detail)


def tell(observe: Observe, call: CallRecord) -> None:
    """Let an observer know. Its failure is its own: the call has ended well or badly without it."""
    try:
        observe(call)
    except Exception:
        logger.exception("an observer of the HTTP client failed")


def _common(call: CallRecord) -> dict[str, Any]:
    return {
        "http_call": f"{os.getpid():x}-{call.number:x}",
        "http_upstream": call.upstream,
        "http_method": call.method,
        "http_url": call.url,
    }


def _log(level: int, event: str, fields: dict[str, Any], detail: str) -> None:
    text = ": ".join(filter(None, (fields["http_outcome"], detail)))
    template = f"{event} %s %s: %s"  # so that lines about the same thing can be told by their template
    logger.log(level, template, fields["http_method"], fields["http_url"], text, extra=fields)
