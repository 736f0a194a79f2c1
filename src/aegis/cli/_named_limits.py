"""Which limits are meant: presets by their names, and those that a program of the user defines."""

from __future__ import annotations

import sys
from importlib import import_module

import typer

from aegis import upstream
from aegis.redis import RateLimit


def presets() -> dict[str, RateLimit]:
    """Those of KIS, DART and Naver, by name."""
    return {value.name: value for value in vars(upstream).values() if isinstance(value, RateLimit)}


def named_limits(names: list[str]) -> list[RateLimit]:
    """Each once, in order. A name is that of a preset, or `MODULE:NAME`, or `MODULE` with a dot: all that are in it."""
    known = presets()
    found: dict[RateLimit, None] = {}
    for name in names or known:
        if name in known:
            found[known[name]] = None
        elif ":" in name or "." in name:
            found |= dict.fromkeys(_defined_in(*name.partition(":")[::2]))
        else:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}, nor MODULE:NAME of a limit of your own")
    return list(found)


def _defined_in(module: str, attribute: str) -> list[RateLimit]:
    """By the user's own code, which is imported from the working directory, too, as `python -m MODULE` would."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        names = vars(import_module(module))
    except Exception as exc:  # whatever the user's code raises is why
        raise typer.BadParameter(f"{module!r} cannot be imported: {type(exc).__name__}: {exc}") from exc
    values = [names.get(attribute)] if attribute else names.values()
    limits = [value for value in values if isinstance(value, RateLimit)]
    if not limits:
        raise typer.BadParameter(f"there is no RateLimit{f' {attribute!r}' if attribute else ''} in {module!r}")
    return limits
