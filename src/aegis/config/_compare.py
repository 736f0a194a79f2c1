"""Two configurations side by side: equal ones have equal fingerprints, different ones a list of changes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from aegis.config.registry import registry
from aegis.config.sections import Config

_FINGERPRINT_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Change:
    """One variable that differs, as text; a secret is masked on both sides."""

    variable: str
    before: str
    after: str
    live: bool  #: taken over by `Reload.config`; otherwise the process must be started anew

    def __str__(self) -> str:
        return f"{self.variable}: {self.before or '(unset)'} -> {self.after or '(unset)'}"


@dataclass(frozen=True, slots=True)
class Reload:
    """What reading again has brought. `config` is the running one with the live changes, and those alone."""

    config: Config
    changes: tuple[Change, ...]

    @property
    def waiting(self) -> tuple[Change, ...]:
        """The changes that need a restart."""
        return tuple(change for change in self.changes if not change.live)


def fingerprint(config: Config) -> str:
    """See `Config.fingerprint`."""
    lines = [
        f"{variable.name}={variable.text(variable.value(config))}" for variable in registry() if not variable.secret
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:_FINGERPRINT_DIGITS]


def compare(running: Config, read: Config) -> Reload:
    """See `Config.reload`."""
    changes, taken = [], running
    for variable in registry():
        before, after = variable.value(running), variable.value(read)
        if before == after:
            continue
        changes.append(Change(variable.name, variable.text(before), variable.text(after), variable.live))
        if variable.live:
            update = {variable.field: after}
            if variable.section:
                update = {variable.section: getattr(taken, variable.section).model_copy(update=update)}
            taken = taken.model_copy(update=update)
    return Reload(taken, tuple(changes))
