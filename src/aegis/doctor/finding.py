"""One line of the report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How serious it is."""

    OK = "ok"
    SKIPPED = "skipped"  #: not looked at; the line says why
    WARNING = "warning"  #: works now, and will cost you later
    FAILED = "failed"  #: does not work


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was seen, and where that is not well, what to do. Holds no secret."""

    area: str
    check: str
    verdict: Verdict
    seen: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Area:
    """Makes findings of one area."""

    name: str

    def ok(self, check: str, seen: str) -> Finding:
        """All is well."""
        return Finding(self.name, check, Verdict.OK, seen)

    def skipped(self, check: str, why: str) -> Finding:
        """Not looked at."""
        return Finding(self.name, check, Verdict.SKIPPED, why)

    def warning(self, check: str, seen: str, remedy: str) -> Finding:
        """Works now, and will cost you later."""
        return Finding(self.name, check, Verdict.WARNING, seen, remedy)

    def failed(self, check: str, seen: str, remedy: str) -> Finding:
        """Does not work."""
        return Finding(self.name, check, Verdict.FAILED, seen, remedy)

    def judged(self, check: str, seen: str, problem: bool, remedy: str) -> Finding:
        """A warning if there is a problem."""
        return self.warning(check, seen, remedy) if problem else self.ok(check, seen)
