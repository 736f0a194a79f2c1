"""What happened with one host, counted where it happens, and summed when somebody asks."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from aegis.http.breaker import Breaker
from aegis.http.records import ELAPSED_BOUNDS_S, Attempt, HttpStats, UpstreamStats
from aegis.http.retry import RetryBudget


@dataclass(slots=True)
class Tally:
    """The counts of one host."""

    calls: int = 0
    attempts: int = 0
    failures: int = 0
    retries: int = 0
    in_flight: int = 0
    permit_wait_s: float = 0.0
    body_bytes: int = 0
    elapsed_s: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    elapsed_counts: list[int] = field(default_factory=lambda: [0] * (len(ELAPSED_BOUNDS_S) + 1))

    def attempt(self, attempt: Attempt) -> None:
        """A request came to something."""
        self.outcomes[attempt.outcome] += 1
        self.body_bytes += attempt.body_bytes
        self.elapsed_s += attempt.elapsed_s
        self.elapsed_counts[bisect_left(ELAPSED_BOUNDS_S, attempt.elapsed_s)] += 1

    def stats(self, breakers: Iterable[Breaker], budgets: Iterable[RetryBudget]) -> UpstreamStats:
        """As a record, with the state of the host's breakers (the one least closed) and budgets (the emptiest)."""
        known = list(breakers)
        return UpstreamStats(
            self.calls,
            self.attempts,
            self.failures,
            self.retries,
            dict(self.outcomes),
            dict(self.refusals),
            self.permit_wait_s,
            self.body_bytes,
            self.elapsed_s,
            tuple(self.elapsed_counts),
            self.in_flight,
            max((one.state for one in known), key=("closed", "half-open", "open").index, default="closed"),
            sum(one.opened for one in known),
            min((one.tokens for one in budgets), default=0.0),
        )


def total(hosts: Mapping[str, UpstreamStats]) -> HttpStats:
    """The totals over all hosts."""
    every = hosts.values()
    return HttpStats(
        calls=sum(one.calls for one in every),
        attempts=sum(one.attempts for one in every),
        retries=sum(one.retries for one in every),
        failures=sum(one.failures for one in every),
        throttled=sum(one.outcomes.get("throttled", 0) for one in every),
        ambiguous=sum(one.outcomes.get("ambiguous", 0) for one in every),
        circuit_refusals=sum(one.refusals.get("circuit", 0) for one in every),
        budget_refusals=sum(one.refusals.get("budget", 0) for one in every),
        permit_wait_s=sum(one.permit_wait_s for one in every),
        body_bytes=sum(one.body_bytes for one in every),
        in_flight=sum(one.in_flight for one in every),
        circuits={host: one.circuit for host, one in hosts.items()},
        upstreams=hosts,
    )
