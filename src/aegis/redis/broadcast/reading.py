"""Reading a partition's book: its header first, then values, so that a value newer than the header is known to be."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice

from aegis.redis._script import load_script
from aegis.redis.broadcast.subscription import Wanted
from aegis.redis.broadcast.wire import Frame, Header, Names, is_key, parse_frame, parse_header, parse_stored
from aegis.redis.client import Redis

_LOOK = load_script("quotes_header", "quotes_look")
_KEYS_PER_COMMAND = 512
_SCAN_COUNT = 1000
_FRAMES_PER_COMMAND = 200


async def read_header(redis: Redis, names: Names, partition: int) -> Header:
    """How far the partition has come."""
    return parse_header(await redis.run(_LOOK, [names.book(partition)], idempotent=True))


async def read_values(redis: Redis, names: Names, partition: int, keys: Collection[str] | None) -> list[Frame]:
    """The last values of these keys, or (None) of all, as frames of one tick."""
    if keys is None:
        return await _scan(redis, names, partition)
    found: list[Frame] = []
    left = iter(sorted(keys))
    while chunk := list(islice(left, _KEYS_PER_COMMAND)):
        values = await redis.execute("HMGET", names.book(partition), *chunk, idempotent=True)
        found += _frames(partition, zip(chunk, values, strict=True))
    return found


async def read_wanted(redis: Redis, names: Names, partition: int, wanted: Wanted) -> tuple[Header, list[Frame]]:
    """Header and wanted values of a partition; values newer than the header are left to their announcements."""
    keys = None if not wanted.listed else {key for key in wanted.keys if names.partition_of(key) == partition}
    header = await read_header(redis, names, partition)
    values = await read_values(redis, names, partition, keys)
    return header, [frame for frame in values if frame.version <= header.version and frame.keys[0] in wanted]


async def read_log(redis: Redis, names: Names, partition: int, after: int, until: int) -> list[Frame]:
    """The logged frames whose last version lies in (after, until], oldest first; empty where nothing is logged."""
    found: list[Frame] = []
    start = f"({after}-0"
    while True:
        entries = await redis.execute(
            "XRANGE", names.log(partition), start, f"{until}-0", "COUNT", _FRAMES_PER_COMMAND, idempotent=True
        )
        found += [parse_frame(partition, fields[1]) for _, fields in entries]
        if len(entries) < _FRAMES_PER_COMMAND:
            return found
        start = f"({entries[-1][0].decode()}"


async def logged_up_to(redis: Redis, names: Names, partition: int, version: int) -> bool:
    """Whether the log still reaches back to a version: it holds a frame from then or before."""
    entries = await redis.execute("XREVRANGE", names.log(partition), f"{version}-0", "-", "COUNT", 1, idempotent=True)
    return bool(entries)


async def _scan(redis: Redis, names: Names, partition: int) -> list[Frame]:
    """In pages: a large book must not stop the server."""
    found: dict[str, Frame] = {}
    cursor: bytes | str = "0"
    while True:
        cursor, flat = await redis.execute(
            "HSCAN", names.book(partition), cursor, "COUNT", _SCAN_COUNT, idempotent=True
        )
        pairs = zip(flat[::2], flat[1::2], strict=True)
        for frame in _frames(partition, [(key.decode(), value) for key, value in pairs if is_key(key)]):
            found[frame.keys[0]] = frame
        if cursor == b"0":
            return list(found.values())


def _frames(partition: int, pairs: Sequence[tuple[str, bytes | None]] | zip[tuple[str, bytes | None]]) -> list[Frame]:
    return [parse_stored(partition, "", key, value) for key, value in pairs if value is not None]
