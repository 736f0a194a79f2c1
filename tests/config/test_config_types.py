"""Scalars: what is read, what is refused, and that what is written reads back the same."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aegis.config._types import (
    parse_duration,
    parse_int,
    parse_size,
    parse_switch,
    write_duration,
    write_size,
    write_switch,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("7d", 604_800),
        ("1.5s", 1.5),
        ("0", 0),
        ("1H", 3600),
    ],
)
def test_durations_carry_their_unit(text, seconds):
    """Seconds in code."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["30", "", "s", "1 s", " 1s", "1s1s", "1s2", "-1s", "1e3s", "1y", "\uff11s", "nan", "infs"]
)
def test_durations_that_would_be_guesses_are_refused(text):
    """No unit, blanks, signs, exponents, foreign digits, the same unit twice."""
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["1e3", "0x10", "1_000", " 1", "1 ", "", "-", "+1", "1.0", "\uff11", "9" * 19, "true"])
def test_numbers_are_plain_digits(text):
    """And not more of them than 64 bits hold."""
    with pytest.raises(ValueError, match="whole number"):
        parse_int(text)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("65536", 65_536), ("5b", 5), ("1kb", 10**3), ("2MB", 2 * 10**6), ("1GB", 10**9),
        ("64KiB", 65_536), ("16MiB", 16 * 2**20), ("1gib", 2**30),
    ],
)  # fmt: skip
def test_sizes_are_decimal_or_binary_as_their_unit_says(text, count):
    """Bytes in code."""
    assert parse_size(text) == count


@pytest.mark.parametrize("text", ["1.5MB", "MiB", "16 MiB", "-1", "1TB", "", "\uff11", "1e3"])
def test_sizes_that_cannot_be_read_are_refused(text):
    """The message shows how they are written."""
    with pytest.raises(ValueError, match="16MiB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "2", "t", "ja", "TRUE ", "enabled"])
def test_switches_have_a_closed_list(text):
    """Nothing is guessed."""
    with pytest.raises(ValueError, match="true or false"):
        parse_switch(text)


@pytest.mark.parametrize("parse", [parse_int, parse_size, parse_duration])
def test_true_is_no_number(parse):
    """Python thinks otherwise."""
    with pytest.raises(ValueError, match="true or false"):
        parse(True)


@given(st.floats(0, 1e9, allow_nan=False))
@example(0.1 + 0.2)
@example(1e-7)
def test_durations_read_back_as_they_were_written(seconds):
    """Every one of them exactly."""
    assert parse_duration(write_duration(seconds)) == seconds


@given(st.integers(0, 2**50))
def test_sizes_and_numbers_read_back_as_they_were_written(count):
    """Every one of them exactly."""
    assert parse_size(write_size(count)) == count
    assert parse_int(str(-count)) == -count


@pytest.mark.parametrize("value", [True, False])
def test_switches_read_back_as_they_were_written(value):
    """In any case, and their other names."""
    assert parse_switch(write_switch(value).upper()) is value
    assert [parse_switch(text) for text in ("yes", "ON", "1", "no", "Off", "0")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]
