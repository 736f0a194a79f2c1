"""
Answers as the three write them: numbers in strings, commas, blanks, days without dashes, Korean time.

What should be a number and is none is an error that names the place, never a zero: a failed read that is taken for
"no shares" has sold people's holdings.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation

import msgspec

from aegis.errors import BodyDecodeError
from aegis.http import Rejected, Response, Throttled, Transient, Verdict

KST = timezone(timedelta(hours=9), "KST")
#: The pause after "too fast", where the answer names no longer one. The quota's window is a second at KIS.
PAUSE_S = 1.0
_EXCERPT_CHARS = 80
_TAG = re.compile(r"<[^>]*>?")


class DailyBar(msgspec.Struct, frozen=True):
    """One day of one stock, in won and shares. On a day without trading, open, high and low are 0."""

    date: date
    open: int
    high: int
    low: int
    close: int
    volume: int
    amount: int


def whole(text: str) -> int:
    """`"1,234"`, `"-5"`, `"1234.00"` as an int; anything else, a blank included, is a ValueError."""
    number = _decimal(text)
    if number != (as_int := int(number)):
        raise ValueError(f"{text!r} is not a whole number")
    return as_int


def exact(text: str | None) -> Decimal | None:
    """A number as it is written, or None for a blank: `"-0.26"`, `"6,788.88"`, `""`, `"N/A"`, `"-"`."""
    if text is None or text.strip() in {"", "-", "N/A"}:
        return None
    return _decimal(text)


def day(text: str) -> date:
    """`"20260102"` as a date."""
    return datetime.strptime(text.strip(), "%Y%m%d").replace(tzinfo=KST).date()


def _decimal(text: str) -> Decimal:
    try:
        number = Decimal(text.strip().replace(",", ""))
    except InvalidOperation:
        raise ValueError(f"{text[:40]!r} is not a number") from None
    if not number.is_finite():
        raise ValueError(f"{text[:40]!r} is not a number")
    return number


def excerpt(response: Response) -> str:
    """
    The first words of a page that came instead of data; of anything else only how much of what came.

    A body that breaks off in the middle of its JSON may hold half a token, which no rule of masking would recognise.
    """
    if not response.content.lstrip().startswith(b"<"):
        return f"{len(response.content)} bytes of {response.headers.get('Content-Type', 'an unnamed type')}"
    try:
        text = response.text()
    except BodyDecodeError:
        text = response.content.decode("ascii", "backslashreplace")
    return " ".join(_TAG.sub(" ", text).split())[:_EXCERPT_CHARS] or "a page without words"


def by_status(response: Response, upstream: str) -> Verdict:
    """What an answer means that is none of the upstream's own: a gateway's page, of which the status is all we know."""
    code, what = str(response.status), f"not an answer of {upstream}: {excerpt(response)}"
    if response.status == 429:
        return Throttled(PAUSE_S, code=code, message=what)
    if response.ok or response.status == 408 or response.status >= 500:
        return Transient(code, what)
    return Rejected(code, what)


@contextlib.contextmanager
def expected_shape(response: Response) -> Iterator[None]:
    """Whatever does not fit while the answer is being read becomes `BodyDecodeError`."""
    try:
        yield
    except (ValueError, KeyError, IndexError, msgspec.ValidationError) as exc:
        if isinstance(exc, BodyDecodeError):
            raise
        where = f"{type(exc).__name__}: {exc}"[:200]
        detail = f"not the expected shape: {where}"
        raise BodyDecodeError(detail, response.method, response.url, response.attempts, response) from None
