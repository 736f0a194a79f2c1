"""
Does a statement leave something behind in its session? Judged by its text alone, so a clean statement costs nothing.

A pooled connection must not carry a `SET`, a `LISTEN` or an advisory lock to its next borrower. Rejected: a reset after
every borrow (asyncpg.Pool: a second round trip per query), asking the server (the same). What the text cannot show (a
function that calls `set_config` inside) needs `DB_RESET=always`.
"""

from __future__ import annotations

import re
from enum import IntEnum

_MEMO_MAX, _MEMO_SQL_MAX = 2048, 8192  # distinct statements remembered, and characters of the longest of them
_NOISE = re.compile(
    r"--[^\n]*|/\*.*?\*/|\be'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\$(\w*)\$.*?\$\1\$",
    re.DOTALL | re.IGNORECASE,
)
_CLOSES = re.compile(r"(?:^|;)\s*(?:prepare|deallocate|discard)\b(?!\s+transaction)", re.IGNORECASE)
_RESETS = re.compile(
    r"(?:^|;)\s*(?:set\s+(?!local\b|transaction\b|constraints\b)|(?:reset|listen|unlisten|load|do|call|declare)\b"
    r"|create\s+(?:local\s+|global\s+)?temp(?:orary)?\b)"
    r"|\bset_config\s*\(|\bpg_(?:try_)?advisory_lock(?:_shared)?\s*\(|\binto\s+(?:local\s+)?temp(?:orary)?\b",
    re.IGNORECASE,
)


class Trace(IntEnum):
    """What a statement leaves behind; the greater one wins."""

    NONE = 0
    RESET = 1  #: settings, listeners, locks, temporary tables: one reset statement removes them
    CLOSE = 2  #: prepared statements: the driver keeps its own under names that we must not touch


_memo: dict[str, Trace] = {}


def trace_of(sql: str) -> Trace:
    """What `sql` may leave behind. May err towards RESET (that costs one round trip), not towards NONE."""
    known = _memo.get(sql)
    if known is not None:
        return known
    bare = without_text(sql)
    trace = Trace.CLOSE if _CLOSES.search(bare) else Trace.RESET if _RESETS.search(bare) else Trace.NONE
    if len(sql) <= _MEMO_SQL_MAX:
        if len(_memo) >= _MEMO_MAX:
            _memo.clear()
        _memo[sql] = trace
    return trace


def without_text(sql: str) -> str:
    """`sql`, as long as before: comments are blanks, quoted text is a name, so `set_config('a', ...)` stays a call."""
    return _NOISE.sub(lambda found: (" " if found[0].startswith(("--", "/*")) else "x") * len(found[0]), sql)
