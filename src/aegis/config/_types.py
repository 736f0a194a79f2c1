"""
Scalars as people write them in an environment: `30s`, `1h30m`, `16MiB`, `true`. Strict: nothing is guessed.

Each type accepts the Python value as well, so that sections can be built in code without strings. Each carries a
`Kind`, from which the documentation is made, and each has a writer that is the inverse of its reader.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h|d)")
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
LEVELS = ("debug", "info", "warning", "error", "critical")
_DIGITS_MAX = 18  #: what fits 64 bits; longer runs of digits are a slip of the keyboard


@dataclass(frozen=True, slots=True)
class Kind:
    """What a type is called in the documentation, its unit in code, and how its values are written."""

    name: str
    unit: str = ""
    write: Callable[[Any], str] = str


def parse_duration(value: Any) -> Any:
    """Seconds from `250ms`, `30s`, `1h30m`; a bare number is refused because its unit is a guess. `0` is zero."""
    if not isinstance(value, str):
        return _number(value, "a duration in seconds")
    text = value.lower()
    if text == "0":
        return 0.0
    parts = _DURATION_PART.findall(text)
    units = [unit for _, unit in parts]
    if not parts or "".join(number + unit for number, unit in parts) != text or len(set(units)) < len(units):
        hint = f"; did you mean {value}s?" if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value) else ""
        raise ValueError(f"expected a duration with a unit, such as 250ms, 30s, 5m or 1h30m{hint}")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def write_duration(seconds: float) -> str:
    """The shortest way to write it that reads back exactly the same."""
    for unit in ("d", "h", "m", "s", "ms", "us"):
        count = seconds / _SECONDS[unit]
        if count >= 1 and count == int(count) and parse_duration(f"{int(count)}{unit}") == seconds:
            return f"{int(count)}{unit}"
    return f"{Decimal(repr(seconds)):f}s" if seconds else "0"


def parse_size(value: Any) -> Any:
    """Bytes from `65536`, `64KiB`, `16MiB`, `1GB`."""
    if not isinstance(value, str):
        return _number(value, "a size in bytes")
    match = re.fullmatch(rf"([0-9]{{1,{_DIGITS_MAX}}})([a-zA-Z]*)", value)
    if match is None or match[2].lower() not in _BYTES:
        raise ValueError("expected a size such as 65536, 64KiB or 16MiB")
    return int(match[1]) * _BYTES[match[2].lower()]


def write_size(count: int) -> str:
    """The largest binary unit that divides it."""
    for unit in ("GiB", "MiB", "KiB"):
        if count and count % _BYTES[unit.lower()] == 0:
            return f"{count // _BYTES[unit.lower()]}{unit}"
    return str(count)


def parse_int(value: Any) -> Any:
    """A whole number in plain digits; `1e3`, `0x10`, `1_000` and blanks are refused."""
    if not isinstance(value, str):
        return _number(value, "a whole number")
    if re.fullmatch(rf"-?[0-9]{{1,{_DIGITS_MAX}}}", value) is None:
        raise ValueError("expected a whole number in plain digits")
    return int(value)


def parse_switch(value: Any) -> Any:
    """A boolean from a closed list of words."""
    if not isinstance(value, str):
        return value
    try:
        return _SWITCH[value.lower()]
    except KeyError:
        raise ValueError("expected true or false (also yes/no, on/off, 1/0)") from None


def write_switch(value: bool) -> str:
    """`true` or `false`."""
    return "true" if value else "false"


def parse_word(value: Any) -> Any:
    """A word of a closed list, in any case."""
    return value.lower() if isinstance(value, str) else value


def parse_names(value: Any) -> Any:
    """Names with commas between them; blanks around them do not count."""
    return tuple(name for part in value.split(",") if (name := part.strip())) if isinstance(value, str) else value


def check_levels(value: tuple[str, ...]) -> tuple[str, ...]:
    """Pairs of a logger's name and its level; `root` is not among them, that is LOG_LEVEL."""
    for pair in value:
        name, _, level = pair.partition("=")
        if not name.strip() or level.strip().lower() not in LEVELS:
            raise ValueError(f"expected pairs such as aegis.http=debug, with one of {', '.join(LEVELS)}")
    return tuple(pair.replace(" ", "") for pair in value)


def check_base_url(value: str) -> str:
    """Address of an HTTP service, without a slash at its end. Raises without repeating it: it may hold a password."""
    try:
        split = urlsplit(value)
        well = split.scheme in {"http", "https"} and bool(split.hostname) and (split.port is None or split.port > 0)
    except ValueError:
        well = False
    if not well:
        raise ValueError("expected an address such as https://host or http://host:port")
    if "@" in split.netloc or split.query or split.fragment:
        raise ValueError("expected an address without user, password, query or fragment")
    return value.rstrip("/")


def _number(value: Any, what: str) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"expected {what}, not true or false")  # noqa: TRY004 - pydantic collects ValueErrors
    return value


_DURATION = Kind("duration", "seconds", write_duration)
_INT = Kind("whole number")

Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0, allow_inf_nan=False), _DURATION]
PositiveDuration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0, allow_inf_nan=False), _DURATION]
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0), Kind("size", "bytes", write_size)]
Int = Annotated[int, BeforeValidator(parse_int), _INT]
PositiveInt = Annotated[int, BeforeValidator(parse_int), Field(gt=0), _INT]
Port = Annotated[int, BeforeValidator(parse_int), Field(ge=0, le=65535), Kind("port")]
Switch = Annotated[bool, BeforeValidator(parse_switch), Kind("true or false", write=write_switch)]
BaseUrl = Annotated[str, AfterValidator(check_base_url), Kind("http(s) address")]
Names = Annotated[tuple[str, ...], BeforeValidator(parse_names), Kind("names, with commas", write=",".join)]
Levels = Annotated[
    tuple[str, ...], BeforeValidator(parse_names), AfterValidator(check_levels),
    Kind("logger=level, with commas", write=",".join),
]  # fmt: skip
#: Put in front of a `Literal` of lower-case words.
AnyCase = BeforeValidator(parse_word)
