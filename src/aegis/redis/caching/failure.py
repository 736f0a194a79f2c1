"""
A loader's error, told to other processes and remembered for a moment.

In another process the error is rebuilt only from a class that this process has imported already and from plain
arguments, and only if it then reads the same; anything else becomes a `LoadFailedError` with the same words. Rejected:
pickle (runs code of whoever can write to Redis).
"""

from __future__ import annotations

import random
import sys
import time
from typing import Any

import msgspec

from aegis.errors import LoadFailedError
from aegis.redis.caching.flight import fresh

_TEXT_CHARACTERS_MAX = 500
_REMEMBERED_MAX = 1024
_Plain = str | bytes | int | float | bool | None


class _Told(msgspec.Struct, array_like=True, frozen=True):
    module: str
    name: str
    args: tuple[Any, ...] | None
    text: str


_decode = msgspec.msgpack.Decoder(_Told).decode


def tell(exc: Exception) -> bytes:
    """The error as bytes, small and without code."""
    cls, text = type(exc), str(exc)[:_TEXT_CHARACTERS_MAX]
    plain = all(arg is None or type(arg) in {str, bytes, int, float, bool} for arg in exc.args)
    told = _Told(cls.__module__, cls.__qualname__, exc.args if plain else None, text)
    encoded = msgspec.msgpack.encode(told)
    if len(encoded) > 4 * _TEXT_CHARACTERS_MAX:
        encoded = msgspec.msgpack.encode(_Told(cls.__module__, cls.__qualname__, None, text))
    return encoded


def rebuild(key: str, told: bytes) -> Exception:
    """The error that another process told."""
    try:
        error = _decode(told)
    except msgspec.MsgspecError:
        return LoadFailedError(key, "the error cannot be read")
    cls: Any = sys.modules.get(error.module)
    for part in error.name.split("."):
        cls = getattr(cls, part, None)
    if error.args is not None and isinstance(cls, type) and issubclass(cls, Exception):
        try:
            exc = cls(*error.args)
            if str(exc)[:_TEXT_CHARACTERS_MAX] == error.text:
                return exc
        except Exception:  # noqa: BLE001, S110 - a constructor that does not take its own arguments; told in words below
            pass
    return LoadFailedError(key, f"{error.name}: {error.text}" if error.text else error.name)


class Failures:
    """Errors of the last moment, so that one failing load is not followed by a thousand."""

    def __init__(self) -> None:
        self._errors: dict[str, tuple[float, Exception]] = {}

    def add(self, key: str, exc: Exception, quiet_s: float) -> None:
        """Remember it for about `quiet_s`; a little less at random, so that keys that failed together spread."""
        if quiet_s <= 0:
            return
        if len(self._errors) >= _REMEMBERED_MAX:
            now = time.monotonic()
            self._errors = {key: error for key, error in self._errors.items() if error[0] > now}
        if len(self._errors) < _REMEMBERED_MAX:
            quiet_s *= random.uniform(0.9, 1.0)
            self._errors[key] = (time.monotonic() + quiet_s, fresh(exc).with_traceback(None))

    def get(self, key: str) -> Exception | None:
        """A copy of the error that is still remembered."""
        found = self._errors.get(key)
        if found is None:
            return None
        if found[0] <= time.monotonic():
            del self._errors[key]
            return None
        return fresh(found[1])

    def clear(self) -> None:
        """Forget everything: that a key was set may have been missed."""
        self._errors.clear()

    def forget(self, key: str) -> None:
        """The key was set or deleted: ask again."""
        self._errors.pop(key, None)
