"""Who called: the first frames outside this room, kept as code and line so that no local variable is kept alive."""

from __future__ import annotations

import sys
from types import CodeType, FrameType
from typing import TypeAlias

Site: TypeAlias = tuple[tuple[CodeType, int], ...]
_OURS = ("aegis.database.", "contextlib")
_DEPTH_MAX = 12  # frames of a reported stack


def caller(frames_max: int = 1) -> Site:
    """The innermost `frames_max` frames outside this room, innermost first. About half a microsecond for one."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - documented; traceback.extract_stack reads files
    found: list[tuple[CodeType, int]] = []
    skipping = True
    while frame is not None and len(found) < frames_max:
        skipping = skipping and frame.f_globals.get("__name__", "").startswith(_OURS)
        if not skipping:
            found.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)


def stack() -> Site:
    """The stack of the caller, for borrowers who may hold long."""
    return caller(_DEPTH_MAX)


def line_of(site: Site) -> str:
    """`orders.py:41 in book`, or a dash for nobody."""
    if not site:
        return "-"
    code, line = site[0]
    return f"{code.co_filename.rpartition('/')[2]}:{line} in {code.co_name}"


def lines_of(site: Site) -> str:
    """The whole stack, innermost first, one frame per line."""
    return "\n".join(f"  {code.co_filename}:{line} in {code.co_name}" for code, line in site)
