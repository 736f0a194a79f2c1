"""
Who may hold the same object: values that cannot be changed are shared, others are copied for each caller.

What counts is the value, not its type: a frozen record may hold a list. Rejected: `copy.deepcopy` on every hit (tens of
microseconds for a small dict).
"""

from __future__ import annotations

import copy
import datetime as dt
import decimal
import enum
import uuid
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import msgspec

_ATOMS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, dt.datetime, dt.date, dt.time, dt.timedelta, dt.timezone,
     decimal.Decimal, uuid.UUID}
)  # fmt: skip
#: Larger values are taken for changeable without looking at every element.
_LOOK_AT_MOST = 10_000


def copier(value: Any, decode: Callable[[], Any]) -> Callable[[], Any] | None:
    """
    How to give `value` to one more caller: None when it can be shared, else what makes a copy.

    `decode` makes the value anew from its encoded form; it serves where nothing quicker is safe.
    """
    left = [_LOOK_AT_MOST]
    if _frozen(value, left):
        return None
    kind = type(value)
    if kind is dict:
        flat = all(_frozen(each, left) for each in value.values())
        return value.copy if flat else decode
    if kind is list:
        return value.copy if all(_frozen(each, left) for each in value) else decode
    if isinstance(value, msgspec.Struct):
        flat = all(_frozen(getattr(value, name), left) for name in value.__struct_fields__)
        return partial(copy.copy, value) if flat else decode
    return decode


def _frozen(value: Any, left: list[int]) -> bool:
    kind = type(value)
    left[0] -= 1
    if kind in _ATOMS:
        return True
    if left[0] < 0:
        return False
    if kind in {tuple, frozenset}:
        return all(_frozen(each, left) for each in value)
    if isinstance(value, enum.Enum):
        return True
    if isinstance(value, msgspec.Struct):
        return value.__struct_config__.frozen and all(
            _frozen(getattr(value, name), left) for name in value.__struct_fields__
        )
    if is_dataclass(value):
        return bool(kind.__dataclass_params__.frozen) and all(
            _frozen(getattr(value, field.name), left) for field in fields(value)
        )
    return isinstance(value, tuple) and all(_frozen(each, left) for each in value)  # a named tuple
