"""
Records that are published in parts (`PubSub(partial=True)`): a tick holds the fields that changed, Redis the record.

A part is announced as the JSON object that it is, and stored as its fields, so that the server can merge it into what
is there: names and values stay the JSON that they are, and nobody loses a digit. `quotes_record.lua` is the other side.
Rejected: merging in the producer (of two producers of one key each would store the other's fields as they once were)
and `cjson` on the server (it keeps 14 digits).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

_FIELD, _VALUE = b"\x1e", b"\x1f"  # in front of each; JSON holds no control characters
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def as_stored(payload: bytes) -> bytes:
    """How the payload of a part is stored; what is not a JSON object stays as it is, and replaces the record."""
    if not payload.startswith(b"{"):
        return payload
    return b"".join(_FIELD + _encode(name) + _VALUE + value for name, value in _fields(payload).items()) or _FIELD


def as_json(stored: bytes) -> bytes:
    """The payload of a stored value as JSON, whether it is a record or not."""
    if not stored.startswith(_FIELD):
        return stored
    return b"{%s}" % b",".join(field.replace(_VALUE, b":", 1) for field in stored[1:].split(_FIELD))


def merge(older: bytes, newer: bytes) -> bytes:
    """Two stored payloads as one: the fields of the newer stand for those of the older."""
    if not (older.startswith(_FIELD) and newer.startswith(_FIELD)):
        return newer
    fields: dict[bytes, bytes] = {}
    for record in (older, newer):
        fields |= {name: value for name, _, value in (field.partition(_VALUE) for field in record[1:].split(_FIELD))}
    fields.pop(b"", None)
    return b"".join(_FIELD + name + _VALUE + value for name, value in fields.items()) or _FIELD


def newest_of(ticks: Iterable[tuple[str, bytes]]) -> dict[str, bytes]:
    """What the ticks of a frame make of each key, as it is stored."""
    newest: dict[str, bytes] = {}
    for key, payload in ticks:
        stored = as_stored(payload)
        newest[key] = merge(newest[key], stored) if key in newest else stored
    return newest
