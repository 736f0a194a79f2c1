"""Retry-After, budget and breaker as plain arithmetic."""

from datetime import UTC, datetime

import pytest

from aegis.http.breaker import Breaker, BreakerPolicy
from aegis.http.retry import RetryBudget, parse_retry_after

NOW = datetime(1994, 11, 6, 8, 49, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 37.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 37.0),
        ("Sun Nov  6 08:49:37 1994", 37.0),
        ("Sun, 06 Nov 1994 08:49:37", 37.0),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
        ("-5", None),
        ("soon", None),
        ("", None),
        (None, None),
        ("9" * 400, None),
        ("1e3", None),
    ],
)
def test_retry_after_is_read_in_all_its_forms(text, seconds):
    """Seconds, the three dates of HTTP, UTC without a zone; garbage is None."""
    assert parse_retry_after(text, NOW) == seconds


def test_the_budget_never_grows_above_its_size():
    """Success refunds; the bucket stays a bucket."""
    budget = RetryBudget(10)
    assert budget.spend(6)
    assert not budget.spend(6)
    budget.refund(100)
    assert budget.tokens == 10


def test_one_probe_decides_a_half_open_breaker():
    """Opens at the ratio, lets one probe through, reopens or closes by it; a cancelled probe frees its place."""
    breaker = Breaker(BreakerPolicy(0.5, 4, 30, 5))
    for failed in (False, False, True, True):
        breaker.leave(breaker.enter(1.0)[0], 1.0, failed=failed)
    assert breaker.enter(2.0) == (-1, 4.0)
    era, _ = breaker.enter(6.0)
    assert breaker.enter(6.0)[0] == -1
    breaker.leave(era, 6.0, failed=None)
    era, _ = breaker.enter(6.0)
    breaker.leave(era, 6.0, failed=True)
    assert breaker.enter(10.9)[0] == -1
    breaker.leave(breaker.enter(11.0)[0], 11.0, failed=False)
    assert breaker.state == "closed"


def test_old_failures_leave_the_window():
    """Three failures, a window's pause, one more: closed."""
    breaker = Breaker(BreakerPolicy(0.5, 4, 30, 5))
    for now in (1.0, 1.0, 1.0, 40.0):
        breaker.leave(breaker.enter(now)[0], now, failed=True)
    assert breaker.state == "closed"
