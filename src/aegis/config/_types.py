"""
Scalars as people write them in an environment: `30s`, `1h30m`, `16MiB`, `true`. Strict: nothing is guessed.

Each type accepts the Python value as well, so that sections can be built in code without strings.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)")
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse_duration(value: Any) -> Any:
    """Seconds from `250ms`, `30s`, `1h30m`; a bare number is refused because its unit is a guess. `0` is zero."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    if text == "0":
        return 0.0
    parts = _DURATION_PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError("expected a duration with a unit, such as 250ms, 30s, 5m or 1h30m")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def parse_size(value: Any) -> Any:
    """Bytes from `65536`, `64KiB`, `16MiB`, `1GB`."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(\d+)\s*([a-zA-Z]*)", value.strip())
    if match is None or match[2].lower() not in _BYTES:
        raise ValueError("expected a size such as 65536, 64KiB or 16MiB")
    return int(match[1]) * _BYTES[match[2].lower()]


def parse_int(value: Any) -> Any:
    """A whole number in plain digits; `1e3`, `0x10` and `1_000` are refused."""
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"-?\d+", value.strip()) is None:
        raise ValueError("expected a whole number in plain digits")
    return int(value)


def parse_switch(value: Any) -> Any:
    """A boolean from a closed list of words."""
    if not isinstance(value, str):
        return value
    try:
        return _SWITCH[value.strip().lower()]
    except KeyError:
        raise ValueError("expected true or false (also yes/no, on/off, 1/0)") from None


Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0, allow_inf_nan=False)]
PositiveDuration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0, allow_inf_nan=False)]
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
Int = Annotated[int, BeforeValidator(parse_int)]
PositiveInt = Annotated[int, BeforeValidator(parse_int), Field(gt=0)]
Port = Annotated[int, BeforeValidator(parse_int), Field(ge=0, le=65535)]
Switch = Annotated[bool, BeforeValidator(parse_switch)]
