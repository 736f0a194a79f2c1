"""Retry-After, budget and breaker as plain arithmetic."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.backoff import Backoff
from aegis.http.breaker import Breaker, BreakerPolicy
from aegis.http.retry import RetryBudget, RetryPolicy, parse_retry_after

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


@given(
    text=st.text(max_size=60)
    | st.from_regex(r"[A-Za-z]{3,9}, ?\d{1,4}[ -]\w{3}[ -]\d{1,5} \d+:\d+:\d+.*", fullmatch=True)
)
def test_whatever_a_server_sends_as_retry_after_is_a_pause_or_nothing(text):
    """Never an exception, never negative, never without end."""
    seconds = parse_retry_after(text, NOW)
    assert seconds is None or 0 <= seconds < 1e12


@given(ahead_s=st.integers(0, 10**9))
def test_the_three_date_forms_mean_the_same_moment(ahead_s):
    """IMF-fixdate, RFC 850 (two digits of the year, so within 50 years) and asctime, to the second."""
    moment = NOW + timedelta(seconds=ahead_s)
    forms = [format_datetime(moment, usegmt=True), moment.strftime("%a %b %d %H:%M:%S %Y")]
    if moment.year < 2040:
        forms.append(moment.strftime("%A, %d-%b-%y %H:%M:%S GMT"))
    assert [parse_retry_after(form, NOW) for form in forms] == [float(ahead_s)] * len(forms)


def test_a_cold_start_has_a_full_budget_and_a_closed_circuit():
    """The first failures of a process are retried, and fewer than `calls_min` open nothing, all failed or not."""
    policy, breaker = RetryPolicy(), Breaker(BreakerPolicy())
    budget = RetryBudget(policy.budget_tokens)
    assert [budget.spend(policy.transient_cost) for _ in range(21)] == [True] * 20 + [False]
    for number in range(1, 21):
        breaker.leave(breaker.enter(1.0)[0], 1.0, failed=True)
        assert breaker.state == ("closed" if number < 20 else "open")


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


def test_the_window_is_as_long_as_it_says():
    """Ten slices of three seconds: what began thirty seconds ago is out, what began twenty-seven seconds ago counts."""
    for first, state in ((0.0, "closed"), (3.0, "open")):
        breaker = Breaker(BreakerPolicy(1.0, 2, 30, 5))
        for now in (first, 30.0):
            breaker.leave(breaker.enter(now)[0], now, failed=True)
        assert breaker.state == state, first


def test_a_circuit_that_closed_again_begins_from_nothing():
    """The failures that opened it count no more: one of four outcomes is not half of eight."""
    breaker = Breaker(BreakerPolicy(0.5, 4, 30, 1))
    for _ in range(4):
        breaker.leave(breaker.enter(1.0)[0], 1.0, failed=True)
    breaker.leave(breaker.enter(2.0)[0], 2.0, failed=False)
    assert breaker.state == "closed"
    breaker.leave(breaker.enter(2.0)[0], 2.0, failed=True)
    assert breaker.state == "closed"


def test_a_run_of_resets_opens_for_long_and_any_answer_breaks_the_run():
    """Three connections broken without an answer: the long pause. A failed probe that is reset again: once more."""
    breaker = Breaker(BreakerPolicy(0.5, 100, 30, 5, resets_max=3, reset_open_s=600))
    for reset in (True, True, False, True, True):
        breaker.leave(breaker.enter(1.0)[0], 1.0, failed=True, reset=reset)
    assert breaker.state == "closed"
    breaker.leave(breaker.enter(1.0)[0], 1.0, failed=None, reset=False)
    breaker.leave(breaker.enter(1.0)[0], 1.0, failed=True, reset=True)
    assert breaker.enter(2.0) == (-1, 599.0)
    breaker.leave(breaker.enter(601.0)[0], 601.0, failed=True, reset=True)
    assert breaker.enter(602.0) == (-1, 599.0)
    breaker.leave(breaker.enter(1201.0)[0], 1201.0, failed=True, reset=False)
    assert breaker.enter(1202.0) == (-1, 4.0)
    breaker.leave(breaker.enter(1206.0)[0], 1206.0, failed=False)
    assert breaker.state == "closed"


def test_resets_are_failures_like_others_where_nothing_else_is_said():
    """Without `resets_max` a hundred resets open the ordinary pause only."""
    breaker = Breaker(BreakerPolicy(0.5, 100, 30, 5))
    for _ in range(100):
        breaker.leave(breaker.enter(1.0)[0], 1.0, failed=True, reset=True)
    assert breaker.enter(1.0) == (-1, 5.0)


def test_outcomes_of_an_earlier_era_change_nothing():
    """Requests that began before the circuit opened end while it is half-open: the probe alone decides."""
    breaker = Breaker(BreakerPolicy(0.5, 2, 30, 5))
    early = [breaker.enter(1.0)[0] for _ in range(4)]
    breaker.leave(early[0], 1.0, failed=True)
    breaker.leave(early[1], 1.0, failed=True)
    probe, _ = breaker.enter(6.0)
    breaker.leave(early[2], 6.0, failed=False)
    breaker.leave(early[3], 6.0, failed=True)
    assert breaker.state == "half-open"
    breaker.leave(probe, 6.0, failed=False)
    assert breaker.state == "closed"


@pytest.mark.parametrize("ratio", [0.5, 0.8, 1.0])
def test_the_ratio_is_met_exactly(ratio):
    """One failure fewer keeps it closed."""
    need = round(ratio * 20)
    for failures, state in ((need - 1, "closed"), (need, "open")):
        breaker = Breaker(BreakerPolicy(ratio, 20, 30, 5))
        for number in range(20):
            breaker.leave(0, 1.0, failed=number >= 20 - failures)
        assert breaker.state == state


@pytest.mark.parametrize("attempt", [1, 2, 64, 65, 1000, 10**9])
def test_a_delay_never_overflows(attempt):
    """Attempt one thousand waits at most the cap, and the first retry is never immediate."""
    policy = RetryPolicy()
    for backoff in (policy.backoff, policy.throttle_backoff, Backoff(1e-6, 1e6)):
        assert backoff.floor_s <= backoff.delay_s(attempt) <= backoff.cap_s
    assert policy.backoff.floor_s > 0


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"attempts": 0}, "attempts=0"),
        ({"budget_tokens": 4.0}, r"budget_tokens=4\.0 .*5\.0"),
        ({"refund": -1.0}, r"refund=-1\.0"),
        ({"throttle_cost": -1.0}, r"throttle_cost=-1\.0"),
    ],
)
def test_a_policy_that_contradicts_itself_names_its_values(wrong, named):
    """At construction."""
    with pytest.raises(ValueError, match=named):
        RetryPolicy(**wrong)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"failure_ratio": 0.0}, "failure_ratio=0.0"),
        ({"failure_ratio": 1.1}, "failure_ratio=1.1"),
        ({"calls_min": 0}, "calls_min=0"),
        ({"open_s": 0.0}, "open_s=0.0"),
        ({"resets_max": -1}, "resets_max=-1"),
        ({"reset_open_s": 1.0}, r"reset_open_s=1\.0 not below open_s=5\.0"),
    ],
)
def test_a_breaker_that_contradicts_itself_names_its_values(wrong, named):
    """At construction."""
    with pytest.raises(ValueError, match=named):
        BreakerPolicy(**wrong)
