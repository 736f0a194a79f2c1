"""The environment of a child process: what it needs from ours, and nothing of our families that it was not given."""

from __future__ import annotations

import os
from collections.abc import Mapping

from aegis.config._load import FAMILIES
from aegis.config.registry import variables


def child_environ(
    settings: Mapping[str, str], environ: Mapping[str, str] | None = None, *, without: tuple[str, ...] | None = None
) -> dict[str, str]:
    """
    The environment for a process that shall be configured by `settings` alone.

    Everything foreign (PATH, LANG, proxies, ...) is passed on; variables of ours are not, so that a `REDIS_URL` of the
    user's shell cannot lead a demo to the user's server. With `without`, only variables that begin so are left out.
    """
    inherited = os.environ if environ is None else environ
    if without is not None:
        return {name: value for name, value in inherited.items() if not name.startswith(without)} | dict(settings)
    ours = variables()
    kept = {name: value for name, value in inherited.items() if name not in ours and not name.startswith(FAMILIES)}
    return {**kept, **settings}
