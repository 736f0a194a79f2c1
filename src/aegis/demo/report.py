"""
The verdict: what the simulator, the processes and the table saw, the rules they must keep, and how that is shown.

`rejected`, `quota_used` and `worst_window` are the simulator's own counts, judged on arrival.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from rich.table import Table

#: The least share of the KIS quota that a saturated demo must have used after its first second.
KIS_QUOTA_USED_MIN = 0.9


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """One upstream as the simulator saw it."""

    requests: int  #: that arrived
    rejected: int  #: for exceeding a quota
    quota_used: float  #: accepted over allowed; for KIS without the first second
    worst_window: int  #: most requests in any sliding window
    limit: int  #: how many that window allows
    longest_silence_s: float = 0.0  #: the longest time without an accepted request, after the first second


class CacheUse(msgspec.Struct, frozen=True, kw_only=True):
    """The cache, summed over the collectors."""

    hits: int
    misses: int
    loads: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What one run did. `problems` names every rule that did not hold; `ok` is whether there is none."""

    seconds: float
    processes: int
    kis: Upstream
    dart: Upstream
    naver: Upstream
    tokens_issued: int
    tokens_refused: int
    cache: CacheUse
    ticks_published: int
    ticks_received: int
    gaps: int
    values_behind: int  #: codes whose newest value at the subscriber is not the one that Redis keeps
    rows_upserted: int
    rows_inserted: int
    rows_in_table: int
    failures: int  #: requests that failed for good
    violations: tuple[str, ...] = ()  #: what the simulator saw and no well-behaved client does

    @property
    def problems(self) -> tuple[str, ...]:
        """Every broken rule, in words."""
        upstreams = {"KIS": self.kis, "DART": self.dart, "Naver": self.naver}
        found = [f"{name} rejected {u.rejected} requests" for name, u in upstreams.items() if u.rejected]
        found += [
            f"{name} saw {u.worst_window} requests in one window, {u.limit} are allowed"
            for name, u in upstreams.items()
            if u.worst_window > u.limit
        ]
        found += [f"{name} was never asked" for name, u in upstreams.items() if not u.requests]
        if self.kis.quota_used < KIS_QUOTA_USED_MIN:
            found.append(f"only {self.kis.quota_used:.2f} of the KIS quota was used, expected {KIS_QUOTA_USED_MIN}")
        if self.tokens_issued != 1 or self.tokens_refused:
            found.append(f"{self.tokens_issued} tokens were issued and {self.tokens_refused} refused, expected 1 and 0")
        if self.gaps:
            found.append(f"the subscriber saw {self.gaps} gaps")
        if self.values_behind:
            found.append(f"the subscriber does not have the newest value of {self.values_behind} codes")
        if self.ticks_received != self.ticks_published or not self.ticks_published:
            found.append(f"{self.ticks_published} ticks were published and {self.ticks_received} received")
        if self.rows_inserted != self.rows_in_table or not self.rows_in_table:
            found.append(f"{self.rows_inserted} rows were inserted, the tables hold {self.rows_in_table}")
        if self.failures:
            found.append(f"{self.failures} requests of the collectors failed")
        return (*found, *self.violations)

    @property
    def ok(self) -> bool:
        """Whether every rule held."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object, its verdict first."""
        fields = msgspec.to_builtins(self)
        return {"ok": self.ok, **fields, "problems": list(self.problems)}


#: Rows of the human report: label and how to read it from a report.
def _rows(report: Report) -> Mapping[str, str]:
    def upstream(u: Upstream) -> dict[str, str]:
        return {
            "requests": f"{u.requests}",
            "rejected by the upstream": f"{u.rejected}",
            "quota used": f"{u.quota_used:.2f}",
            "worst sliding window": f"{u.worst_window} of {u.limit}",
            "longest silence": f"{u.longest_silence_s:.2f} s",
        }

    rows: dict[str, str] = {}
    for name, seen in (("KIS", report.kis), ("DART", report.dart), ("Naver", report.naver)):
        rows |= {f"{name} {label}": value for label, value in upstream(seen).items()}
    return rows | {
        "tokens issued / refused": f"{report.tokens_issued} / {report.tokens_refused}",
        "cache hits / misses / loads": f"{report.cache.hits} / {report.cache.misses} / {report.cache.loads}",
        "ticks published / received": f"{report.ticks_published} / {report.ticks_received}",
        "gaps / codes not up to date": f"{report.gaps} / {report.values_behind}",
        "requests failed for good": f"{report.failures}",
        "rows upserted / in tables": f"{report.rows_upserted} / {report.rows_in_table}",
        "verdict": "every rule held" if report.ok else f"{len(report.problems)} rules broken",
    }


def as_table(columns: Mapping[str, Report]) -> Table:
    """Reports side by side, one column each."""
    table = Table("what was seen", *columns)
    rows = [_rows(report) for report in columns.values()]
    for label in rows[0]:
        table.add_row(label, *(row[label] for row in rows))
    return table
