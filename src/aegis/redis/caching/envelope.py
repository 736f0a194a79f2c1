"""
How a value lies in Redis: a fixed head, the generations of its tags, msgpack.

What cannot be read is a miss and never an exception: foreign bytes, a cut-off value, another version, a value of
another schema. The head carries a fingerprint of the type (`schema.py`), because msgspec alone would read an old
record into a new class by filling in defaults. Rejected: pickle (runs code of whoever can write to Redis), JSON (twice
the size and no bytes).
"""

from __future__ import annotations

import os
import struct
import zlib
from functools import lru_cache
from typing import Any

import msgspec

from aegis.redis.caching.schema import ANY, accepted_by, fingerprint, fingerprint_of_value

#: magic and version, flags, tags, identity, fingerprint, hard ms, soft ms, delta us, bytes of payload
_HEAD = struct.Struct(">2sBB8s4sQQII")
_MAGIC = b"\xae\x01"  # the second byte is the version of this layout
_ZLIB = 1
_TAG = struct.Struct(">HB")  # bytes of the tag's name, of its generation
_HEAD_BYTES, _unpack_head = _HEAD.size, _HEAD.unpack_from

#: Most tags of one value (their number is one byte), and characters of one (its length in bytes is two).
TAGS_MAX, TAG_CHARACTERS_MAX = 255, 16_000
#: How many first bytes tell one stored value from any other.
IDENTITY_BYTES = 12
COMPRESS_ABOVE_BYTES = 4096
#: A payload that claims to be larger than this when inflated is damaged.
_INFLATED_BYTES_MAX = 512 * 1024 * 1024
_encode = msgspec.msgpack.Encoder().encode


class Entry(msgspec.Struct, frozen=True, gc=False):
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
    if type(raw) is not bytes or len(raw) < _HEAD_BYTES:
        return None
    magic, flags, count, _, mark, hard_ms, soft_ms, delta_us, length = _unpack_head(raw)
    if magic != _MAGIC or flags > _ZLIB:
        return None
    tags: tuple[tuple[str, bytes], ...] = ()
    try:
        if count:
            tags, at = _unpack_tags(raw, count)
            payload = raw[at:]
        else:
            payload = raw[_HEAD_BYTES:]
        if len(payload) != length:
            return None
        if flags:
            payload = _inflated(payload)
    except (struct.error, UnicodeDecodeError, zlib.error):
        return None
    return Entry(raw[:IDENTITY_BYTES], mark, hard_ms, soft_ms, delta_us, tags, payload)


def _unpack_tags(raw: bytes, count: int) -> tuple[tuple[tuple[str, bytes], ...], int]:
    at, tags = _HEAD_BYTES, []
    for _ in range(count):
        name_length, generation_length = _TAG.unpack_from(raw, at)
        at += _TAG.size
        name = raw[at : at + name_length].decode()
        at += name_length
        tags.append((name, raw[at : at + generation_length]))
        at += generation_length
    if at > len(raw):  # slices do not complain
        raise struct.error("cut off within its tags")
    return tuple(tags), at


def _inflated(payload: bytes) -> bytes:
    inflater = zlib.decompressobj()
    inflated = inflater.decompress(payload, _INFLATED_BYTES_MAX)
    if not inflater.eof or inflater.unused_data:
        raise zlib.error("incomplete or too large")
    return inflated


class Codec:
    """Decodes one type, and knows which fingerprints it may read."""

    __slots__ = ("_accepted", "_fingerprint", "payload", "type")

    def __init__(self, type_: Any) -> None:
        self.type = type_
        #: The value in an encoded payload; ValueError (msgspec.DecodeError) when it is not of the type.
        self.payload = msgspec.msgpack.Decoder(type_).decode
        self._fingerprint, self._accepted = fingerprint(type_), accepted_by(type_)

    def decode(self, entry: Entry) -> Any:
        """
        The value.

        Raises:
            ValueError: the payload is not a value of this type, or was written for another schema.
        """
        if self._accepted and entry.fingerprint not in self._accepted:
            raise ValueError("written for another schema")
        return self.payload(entry.payload)

    def fingerprint_of(self, value: Any) -> bytes:
        """What to write beside a loaded value: a record's own type, else the declared one."""
        own = fingerprint_of_value(value)
        return self._fingerprint if own == ANY and value is not None else own


def encode(value: Any) -> bytes:
    """
    The value as msgpack.

    Raises:
        TypeError: msgspec cannot encode it.
    """
    return _encode(value)


#: The codec of a type, made once.
codec_for = lru_cache(maxsize=1024)(Codec)
