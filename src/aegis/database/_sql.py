"""SQL as text: what of it is code, where its statements end, and which of them begin or end a transaction."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

#: Comments and quoted text. Where a block comment ends must be counted, for they nest.
_TEXT = re.compile(
    r"--[^\r\n]*|/\*|\b[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\""
    r"|(?<![\w$])\$((?:[^\W\d]\w*)?)\$.*?\$\1\$",
    re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_PLAIN_NAME = re.compile(r'"(\w+)"')
_ATOMIC_BODY = re.compile(r"\bbegin\s+(?=atomic\b).*?(?:;|atomic)\s*end\b", re.DOTALL | re.IGNORECASE)
_CONTROL = re.compile(
    r"(?:begin|commit|end|abort|(?:start|prepare)\s+transaction|rollback(?!\s+(?:(?:work|transaction)\s+)?to\b))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Statement:
    """One of several in a text; `line` is where its code begins."""

    sql: str
    bare: str  #: without text, see `without_text`
    line: int

    @property
    def control(self) -> str:
        """What it does to the transaction that it stands in, such as `commit`; a savepoint does nothing to it."""
        found = _CONTROL.match(self.bare)
        return found[0].lower() if found else ""


def without_text(sql: str) -> str:
    """
    `sql`, as long as before: comments are blanks, a quoted name is a bare one, and other quoted text is a name.

    So `"set_config"('a', ...)` stays the call that it is.
    """
    parts, at = [], 0
    while found := _TEXT.search(sql, at):
        end = _end_of_comment(sql, found.start()) if found[0] == "/*" else found.end()
        parts += [sql[at : found.start()], _instead_of(sql[found.start() : end])]
        at = end
    return "".join(parts) + sql[at:]


def statements(sql: str) -> Iterator[Statement]:
    """Split at semicolons outside of text, and of a function's BEGIN ATOMIC body."""
    bare = _ATOMIC_BODY.sub(lambda body: "x" * len(body[0]), without_text(sql))
    begin = 0
    for end in [*(at.start() for at in re.finditer(";", bare)), len(sql)]:
        piece = bare[begin:end]
        if code := piece.strip():
            yield Statement(sql[begin:end].strip(), code, 1 + sql.count("\n", 0, begin + piece.index(code)))
        begin = end + 1


def _end_of_comment(sql: str, start: int) -> int:
    depth = 0
    for edge in _COMMENT_EDGE.finditer(sql, start):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    return len(sql)


def _instead_of(text: str) -> str:
    if text.startswith(("--", "/*")):
        return " " * len(text)
    name = _PLAIN_NAME.fullmatch(text)
    return f" {name[1]} " if name else "x" * len(text)
