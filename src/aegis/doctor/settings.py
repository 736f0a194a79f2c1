"""The configuration: can it be read, and is anything doubtful."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aegis.config import Examined, registry
from aegis.doctor.finding import Area, Finding

_AREA = Area("configuration")


async def examine_settings(examined: Examined) -> AsyncIterator[Finding]:
    """Every problem and every warning, or one line that all is well."""
    for problem in examined.problems:
        name, _, seen = str(problem).partition(": ")
        yield _AREA.failed(name, seen, "see `aegis config docs` for how it is written")
    for warning in examined.warnings:
        yield _AREA.warning(warning.variable, warning.reason, f"it comes from: {warning.source or 'default'}")
    if examined.config is not None:
        count = sum(variable.name in examined.settings for variable in registry())
        seen = f"{count} of {len(registry())} are set, {examined.config.env}, {examined.config.fingerprint()}"
        yield _AREA.ok("variables", seen)
