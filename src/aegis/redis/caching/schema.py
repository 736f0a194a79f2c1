"""
A fingerprint of what a type stores: it changes when fields do, and not when a class moves or a default changes.

Types without fields (str, dict, Any) have none: there, what msgspec checks while decoding is all there is to check.
Rejected: the class's name (moving a class is no change of schema, adding a field is), its JSON schema (not every type
has one, and it holds defaults).
"""

from __future__ import annotations

import enum
import hashlib
import types
from collections.abc import Hashable
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any, Union, get_args, get_origin

import msgspec
from msgspec import inspect

#: The fingerprint of values and types that have no fields.
ANY = bytes(4)
_PLAIN = frozenset(
    {Any, object, dict, list, tuple, set, frozenset, str, bytes, bytearray, int, float, bool, type(None)}
)  # fmt: skip
#: Parts of a description that say where a type lives or what it fills in, not what is stored.
_NOT_STORED = frozenset({"cls", "default", "default_factory", "required", "extra", "extra_json_schema"})


@lru_cache(maxsize=1024)
def fingerprint(type_: Hashable) -> bytes:
    """
    Four bytes for a type.

    Raises:
        TypeError: msgspec does not support the type.
    """
    if type_ in _PLAIN:
        return ANY
    described = _stored(inspect.type_info(type_), ())
    return hashlib.blake2b(repr(described).encode(), digest_size=4).digest()


def fingerprint_of_value(value: Any) -> bytes:
    """That of a record's class; ANY for everything else, a list of records included."""
    cls: Any = type(value)
    if isinstance(value, msgspec.Struct) or is_dataclass(cls):
        return fingerprint(cls)
    return ANY


def accepted_by(type_: Any) -> frozenset[bytes]:
    """The fingerprints that a reader of `type_` takes: its own, its members' if it is a union. Empty: all."""
    own = fingerprint(type_)
    if own == ANY:
        return frozenset()
    members = get_args(type_) if get_origin(type_) in {Union, types.UnionType} else ()
    return frozenset({ANY, own, *(fingerprint(member) for member in members)})


def _stored(info: Any, above: tuple[Any, ...]) -> Any:
    if isinstance(info, inspect.EnumType):
        return ("enum", sorted(repr(member.value) for member in info.cls))
    if isinstance(info, inspect.Type | inspect.Field):
        cls = getattr(info, "cls", None)
        if cls is not None and cls in above:  # a type that contains itself
            return ("again", above.index(cls))
        below = above if cls is None else (*above, cls)
        names = [name for name in info.__struct_fields__ if name not in _NOT_STORED]
        return (type(info).__name__, *((name, _stored(getattr(info, name), below)) for name in names))
    if isinstance(info, tuple | list):
        return [_stored(each, above) for each in info]
    if isinstance(info, enum.Enum | type):
        return getattr(info, "__name__", repr(info))
    return info
