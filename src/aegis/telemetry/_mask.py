"""
What may be shown of a value: secrets masked, size bounded, nothing that could forge a line.

The masking itself is the one of `aegis.http`; here it reaches into whatever people log: mappings, lists, bytes, objects
that only have a `repr`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, SecretStr

from aegis.http.redact import MASK, Redactor

_TEXT_MAX = 16_384  #: characters of one text; a traceback of fifty frames fits
_ITEMS_MAX = 100
_DEPTH_MAX = 6
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029]")


def redactor_for(names: Iterable[str] = (), values: Iterable[str | SecretStr] = ()) -> Redactor:
    """The redactor of a process: well-known names, `names`, and `values` wherever they stand."""
    plain = (value.get_secret_value() if isinstance(value, SecretStr) else value for value in values)
    return Redactor(names, plain)


def secrets_of(config: BaseModel) -> frozenset[str]:
    """Every secret that a configuration holds, and the passwords inside its URLs."""
    return frozenset(_secrets(config))


def _secrets(config: BaseModel) -> Iterator[str]:
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from _secrets(value)
        elif isinstance(value, SecretStr):
            text = value.get_secret_value()
            if "://" not in text:
                yield text
                continue
            try:
                password = urlsplit(text).password
            except ValueError:
                password = None
            if password:
                yield from (password, unquote(password))


def masked(redactor: Redactor, name: str, value: Any, depth: int = 0) -> Any:
    """`value` as it may be shown under `name`."""
    if redactor.secret(name):
        return MASK
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return bounded(redactor.text(value))
    if depth < _DEPTH_MAX and isinstance(value, Mapping):
        pairs = list(value.items())[:_ITEMS_MAX]
        return {str(key): masked(redactor, str(key), inner, depth + 1) for key, inner in pairs}
    if depth < _DEPTH_MAX and isinstance(value, list | tuple | AbstractSet):
        return [masked(redactor, "", inner, depth + 1) for inner in list(value)[:_ITEMS_MAX]]
    if isinstance(value, bytes | bytearray):
        return bounded(redactor.text(bytes(value).decode("utf-8", "backslashreplace")))
    return bounded(redactor.text(_shown(value)))


def bounded(text: str) -> str:
    """A text that fits a line of a log, and any encoding of Unicode; what was cut is said."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= _TEXT_MAX:
        return text
    return f"{text[:_TEXT_MAX]}... ({len(text) - _TEXT_MAX} more characters)"


def one_line(text: str) -> str:
    """A text that cannot break or colour the line it stands in."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text.replace("\n", "\\n"))


def _shown(value: object) -> str:
    try:
        return repr(value)
    except Exception as exc:  # noqa: BLE001 - a value that cannot be shown must not cost the line
        return f"<{type(value).__name__} whose repr fails with {type(exc).__name__}>"
