"""
Does a statement leave something behind in its session? Judged by its text alone, so a clean statement costs nothing.

A pooled connection must not carry a `SET`, a `LISTEN` or an advisory lock to its next borrower. Rejected: a reset after
every borrow (asyncpg.Pool: a second round trip per query), asking the server (the same). What the text cannot show (a
function that calls `set_config` inside) needs `DB_RESET=always`.
"""

from __future__ import annotations

import re
from enum import IntEnum

from aegis.database._sql import without_text

_MEMO_MAX, _MEMO_SQL_MAX = 2048, 8192  # distinct statements remembered, and characters of the longest of them
_CLOSES = re.compile(r"(?:^|;)\s*(?:prepare|deallocate|discard)\b(?!\s+transaction)", re.IGNORECASE)
_RESETS = re.compile(
    r"(?:^|;)\s*(?:set\s+(?!local\b|transaction\b|constraints\b)|(?:reset|listen|unlisten|load|do|call|declare)\b)"
    r"|\b(?:create\s+(?:or\s+replace\s+)?|into\s+)(?:(?:local|global)\s+)?temp(?:orary)?\b|\bpg_temp"
    r"|\bset_config\s*\(|\bpg_(?:try_)?advisory_lock(?:_shared)?\s*\(",
    re.IGNORECASE,
)
#: Where text ends depends on settings (`\'`), and names may be spelled in numbers (`U&"..."`): not read, but reset.
_UNREADABLE = re.compile(r"\\'|\bu&\"", re.IGNORECASE)


class Trace(IntEnum):
    """What a statement leaves behind; the greater one wins."""

    NONE = 0
    RESET = 1  #: settings, listeners, locks, temporary tables: one reset statement removes them
    CLOSE = 2  #: prepared statements: the driver keeps its own under names that we must not touch


_memo: dict[str, Trace] = {}


def trace_of(sql: str) -> Trace:
    """What `sql` may leave behind. May err towards RESET (that costs one round trip), not towards NONE."""
    if not isinstance(sql, str):
        raise TypeError(f"SQL is text, not {type(sql).__name__}")
    known = _memo.get(sql)
    if known is not None:
        return known
    bare = without_text(sql)
    trace = Trace.NONE
    if _CLOSES.search(bare):
        trace = Trace.CLOSE
    elif _RESETS.search(bare) or _UNREADABLE.search(sql):
        trace = Trace.RESET
    if len(sql) <= _MEMO_SQL_MAX:
        if len(_memo) >= _MEMO_MAX:
            _memo.clear()
        _memo[sql] = trace
    return trace
