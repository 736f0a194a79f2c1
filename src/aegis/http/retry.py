"""
When to try again, and how long to wait: numbers only, no I/O.

The budget is botocore's (a bucket of tokens: a retry costs, a success refunds), because a count per call cannot stop a
storm of calls. Rejected: a `Retry-After` that is slept into the caller's own timeout, as .NET and Go do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from aegis.backoff import Backoff

#: Methods that RFC 9110 9.2.2 calls idempotent.
IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and with which delays. Throttling has a slower scale of its own."""

    attempts: int = 4
    backoff: Backoff = field(default_factory=lambda: Backoff(0.2, 10.0, 0.02))
    throttle_backoff: Backoff = field(default_factory=lambda: Backoff(1.0, 10.0, 0.1))
    budget_tokens: float = 100.0
    transient_cost: float = 5.0
    throttle_cost: float = 1.0
    refund: float = 1.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ValueError(f"attempts={self.attempts} must be at least 1")
        if min(self.transient_cost, self.throttle_cost, self.refund) < 0:
            raise ValueError(
                f"transient_cost={self.transient_cost}, throttle_cost={self.throttle_cost}, refund={self.refund}: "
                "none may be negative"
            )
        if max(self.transient_cost, self.throttle_cost) > self.budget_tokens:
            raise ValueError(
                f"budget_tokens={self.budget_tokens} is below the cost of one retry "
                f"({max(self.transient_cost, self.throttle_cost)}), so no retry could ever happen"
            )


class RetryBudget:
    """Tokens of one upstream. Retries spend, successes refund; empty means: fail with the first error."""

    __slots__ = ("tokens", "tokens_max")

    def __init__(self, tokens_max: float) -> None:
        self.tokens = self.tokens_max = tokens_max

    def __repr__(self) -> str:
        return f"RetryBudget({self.tokens:g} of {self.tokens_max:g})"

    def spend(self, cost: float) -> bool:
        """Whether a retry may happen; takes its cost if so."""
        if self.tokens < cost:
            return False
        self.tokens -= cost
        return True

    def refund(self, tokens: float) -> None:
        """A success pays back, up to the full bucket."""
        self.tokens = min(self.tokens_max, self.tokens + tokens)


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds from a `Retry-After`: a number or one of HTTP's three date forms; None for garbage or a negative one."""
    text = (value or "").strip()
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return float(text) if len(text) <= 10 else None
    moment = _date(text)
    if moment is None:
        return None
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        try:
            moment = datetime.strptime(text, "%a %b %d %H:%M:%S %Y")  # noqa: DTZ007 - asctime has no zone: UTC below
        except ValueError:
            return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
