"""
How a value lies in Redis: a fixed head, the generations of its tags, msgpack.

What cannot be read is a miss and never an exception: foreign bytes, a cut-off value, another version, a value of
another schema. The head carries a fingerprint of the type, because msgspec alone would read an old record into a new
class by filling in defaults. Rejected: pickle (runs code of whoever can write to Redis), JSON (twice the size and no
bytes), class names as schema (moving a class is no change of schema, adding a field is).
"""

from __future__ import annotations

import enum
import hashlib
import os
import struct
import types
import zlib
from collections.abc import Hashable
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from typing import Any, Union, get_args, get_origin

import msgspec

_HEAD = struct.Struct(">2sBB8s4sQQII")  # magic, flags, tags, identity, fingerprint, hard ms, soft ms, delta us, length
_MAGIC = b"\xae\x01"  # the second byte is the version of this layout
_ZLIB = 1
_TAG = struct.Struct(">HB")  # bytes of the tag's name, of its generation
_ANY = bytes(4)

#: How many first bytes tell one stored value from any other.
IDENTITY_BYTES = 12
COMPRESS_ABOVE_BYTES = 4096
_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Entry:
    """A value as it lies in Redis, its payload not decoded yet."""

    identity: bytes  #: first bytes of the envelope: unique to this one write
    fingerprint: bytes
    hard_ms: int  #: time to live at the moment of writing
    soft_ms: int  #: how much of it the value is fresh
    delta_us: int  #: how long its load took
    tags: tuple[tuple[str, bytes], ...]  #: tag and generation
    payload: bytes


def pack(
    payload: bytes,
    fingerprint: bytes,
    *,
    hard_ms: int,
    soft_ms: int,
    delta_s: float = 0.0,
    tags: tuple[tuple[str, bytes], ...] = (),
) -> bytes:
    """The envelope of an encoded value; compressed where that makes it smaller."""
    flags = 0
    if len(payload) > COMPRESS_ABOVE_BYTES:
        smaller = zlib.compress(payload, 1)
        if len(smaller) < len(payload):
            payload, flags = smaller, _ZLIB
    delta_us = min(int(delta_s * 1e6), 0xFFFF_FFFF)
    head = _HEAD.pack(_MAGIC, flags, len(tags), os.urandom(8), fingerprint, hard_ms, soft_ms, delta_us, len(payload))
    parts = [head]
    for tag, generation in tags:
        name = tag.encode()
        parts += (_TAG.pack(len(name), len(generation)), name, generation)
    parts.append(payload)
    return b"".join(parts)


def unpack(raw: Any) -> Entry | None:
    """The entry in these bytes, or None when they are not one that this version wrote completely."""
    if type(raw) is not bytes or len(raw) < _HEAD.size:
        return None
    magic, flags, count, _, fingerprint, hard_ms, soft_ms, delta_us, length = _HEAD.unpack_from(raw)
    if magic != _MAGIC or flags > _ZLIB:
        return None
    try:
        at, tags = _HEAD.size, []
        for _ in range(count):
            name_length, generation_length = _TAG.unpack_from(raw, at)
            at += _TAG.size
            name = raw[at : at + name_length].decode()
            at += name_length
            tags.append((name, raw[at : at + generation_length]))
            at += generation_length
        payload = raw[at:]
        if len(payload) != length:
            return None
        if flags:
            payload = zlib.decompress(payload)
    except (struct.error, UnicodeDecodeError, zlib.error):
        return None
    return Entry(raw[:IDENTITY_BYTES], fingerprint, hard_ms, soft_ms, delta_us, tuple(tags), payload)


class Codec:
    """Encodes and decodes one type, and knows which fingerprints it may read."""

    __slots__ = ("_decode", "accepted", "fingerprint", "type")

    def __init__(self, type_: Any) -> None:
        self.type, self.fingerprint = type_, fingerprint(type_)
        self._decode = msgspec.msgpack.Decoder(type_).decode
        members = get_args(type_) if get_origin(type_) in {Union, types.UnionType} else ()
        self.accepted = frozenset({_ANY, *(fingerprint(each) for each in (type_, *members))})

    def decode(self, entry: Entry) -> Any:
        """
        The value.

        Raises:
            ValueError: the payload is not a value of this type.
        """
        if entry.fingerprint not in self.accepted and self.fingerprint != _ANY:
            raise ValueError("written for another schema")
        return self._decode(entry.payload)

    def payload(self, payload: bytes) -> Any:
        """The value in an encoded payload."""
        return self._decode(payload)

    def fingerprint_of(self, value: Any) -> bytes:
        """What to write beside `value`: its own type's fingerprint for a record, the declared type's otherwise."""
        if isinstance(value, msgspec.Struct) or is_dataclass(value):
            return _fingerprint_of_class(type(value))
        return _ANY if value is None else self.fingerprint


def _fingerprint_of_class(cls: Any) -> bytes:
    return fingerprint(cls)


def encode(value: Any) -> bytes:
    """
    The value as msgpack.

    Raises:
        TypeError: msgspec cannot encode it.
    """
    return _encode(value)


@lru_cache(maxsize=1024)
def _codec(type_: Hashable) -> Codec:
    return Codec(type_)


def codec_for(type_: Any) -> Codec:
    """The codec of a type, made once."""
    return _codec(type_)


@lru_cache(maxsize=1024)
def fingerprint(type_: Hashable) -> bytes:
    """Four bytes that change when the fields of a type do, and not when it moves or its defaults change."""
    if type_ in {Any, object} or type_ in _PLAIN:
        return _ANY
    shape = _shape(msgspec.inspect.type_info(type_), ())
    return hashlib.blake2b(repr(shape).encode(), digest_size=4).digest()


#: Types without fields: what msgspec checks while decoding is all there is to check.
_PLAIN = frozenset({dict, list, tuple, set, frozenset, str, bytes, int, float, bool, type(None)})
#: Parts of a description that say where a type lives or what it fills in, not what is stored.
_NOT_STORED = frozenset({"cls", "default", "default_factory", "extra", "extra_json_schema"})


def _shape(info: Any, above: tuple[Any, ...]) -> Any:
    if isinstance(info, msgspec.inspect.Type | msgspec.inspect.Field):
        cls = getattr(info, "cls", None)
        if cls is not None and cls in above:  # a type that contains itself
            return ("again", above.index(cls))
        if isinstance(info, msgspec.inspect.EnumType):
            return ("enum", sorted(repr(member.value) for member in info.cls))
        below = above if cls is None else (*above, cls)
        fields = [
            (name, _shape(getattr(info, name), below)) for name in info.__struct_fields__ if name not in _NOT_STORED
        ]
        return (type(info).__name__, *fields)
    if isinstance(info, tuple | list):
        return [_shape(each, above) for each in info]
    if isinstance(info, enum.Enum | type):
        return getattr(info, "__name__", repr(info))
    return info
