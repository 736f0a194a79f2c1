"""
The shared cache: one load in the whole fleet, a microsecond hit, and an outage that costs milliseconds.

Two tiers: decoded values in this process (`_tier.py`), which the server calls back when they change (`_tether.py`), and
encoded ones in Redis (`_shelf.py`, `_envelope.py`). What is in neither is loaded under a lease (`_loads.py`), by a task
that outlives any single caller (`_flight.py`). When Redis does not answer, callers go on without it (`_outage.py`).

Rejected: SET NX beside GET for the lock (a late holder overwrites), polling for it, timestamps for tags (clocks differ
between hosts), pickle (runs code of whoever can write to Redis).
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal, ParamSpec, TypeVar, overload

from aegis.redis._batch import Batch
from aegis.redis._cache_stats import TTL, CacheStats, Counters, Lifetime, milliseconds
from aegis.redis._cached import KeyTemplate, result_type
from aegis.redis._envelope import codec_for, encode, pack
from aegis.redis._loads import AbsentError, Loads, Plan, call, encoded
from aegis.redis._reader import Reader, Reading, is_early
from aegis.redis._schema import fingerprint_of_value
from aegis.redis._shelf import UNANSWERED, Shelf
from aegis.redis._tether import Tether
from aegis.redis._tier import LocalEntry, Tier
from aegis.redis.client import Redis

T = TypeVar("T")
D = TypeVar("D")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """What `inspect` shows of a value."""

    key: str
    value: Any  #: as plain lists, dicts and scalars
    expires_in_s: float | None  #: None: never
    fresh_for_s: float  #: negative: it is served only within `stale_s`
    load_s: float  #: how long its load took; 0.0 when it was set
    tags: tuple[str, ...]
    bytes: int  #: in Redis, with its envelope


class Cache:
    """
    Values shared by all processes that use the same server and prefix.

    Make it inside the `async with` of its `Redis`; its background work ends with that. It starts to connect its
    invalidation link with the first use.

    - `local_entries`, `local_bytes`: bounds of the in-process tier; 0 entries: none. Its bytes are estimated from the
      encoded size.
    - `lease_s`: how long the right to load lasts unless renewed. After a `kill -9` of the loading process another one
      loads within that time. At most 10.
    - `load_timeout_s`: a loader that takes longer is cancelled, and its callers get `LoadTimeoutError`.
    - `patience_s`: longest wait for one answer of the server, before this process goes on without it and asks again in
      the background.
    - `concurrent_loads`: most loaders that run at once in this process, also while Redis is away.
    - `on_outage`: what `get`, `set` and `delete` do when Redis does not answer: "miss" (nothing; what could not be
      deleted is deleted when Redis is back) or "raise". `get_or_set` never raises for it.
    - `jitter`: by what part at most a fixed `ttl` of loaded values and of `set_many` is shortened at random.
    - `eagerness`: above 1 refreshes hot values earlier before they expire, 0 never.
    """

    def __init__(
        self,
        redis: Redis,
        prefix: str = "aegis",
        *,
        local_entries: int = 10_000,
        local_bytes: int = 64 * 1024 * 1024,
        lease_s: float = 5.0,
        load_timeout_s: float = 30.0,
        patience_s: float = 0.2,
        concurrent_loads: int = 64,
        on_outage: Literal["miss", "raise"] = "miss",
        jitter: float = 0.05,
        eagerness: float = 1.0,
    ) -> None:
        _check("lease_s", lease_s, 0.01, 10)
        _check("load_timeout_s", load_timeout_s, 0.001, 86_400)
        _check("patience_s", patience_s, 0.001, 10)
        _check("concurrent_loads", concurrent_loads, 1, 1_000_000)
        _check("jitter", jitter, 0, 0.5)
        _check("eagerness", eagerness, 0, 1000)
        _check("local_entries", local_entries, 0, 100_000_000)
        if on_outage not in {"miss", "raise"}:
            raise ValueError(f"on_outage={on_outage!r} is neither 'miss' nor 'raise'")
        self._redis, self._space, self._eagerness = redis, "", eagerness
        self._raises = on_outage == "raise" and redis.enabled
        self._count = Counters()
        self._shelf = Shelf(redis, prefix, patience_s)
        self._tier = Tier(local_entries, local_bytes)
        self._entries = self._tier.entries
        self._reader = Reader(self._shelf, self._tier, self._count, eagerness)
        self._loads = Loads(
            self._shelf, self._reader, self._count,
            lease_s=lease_s, load_timeout_s=load_timeout_s, concurrent_max=concurrent_loads, jitter=jitter,
        )  # fmt: skip
        self._tether = Tether(self._shelf, self._tier, self._loads)
        redis.on_close(self._close)

    def __repr__(self) -> str:
        return (
            f"<Cache {self._shelf.prefix!r} {self._state} local={len(self._entries)} loads={len(self._loads.flights)}>"
        )

    def namespace(self, name: str) -> Cache:
        """The same cache, with `name:` before every key and tag. It shares connection, tier and counts."""
        derived = object.__new__(Cache)
        derived.__dict__.update(self.__dict__)
        derived._space = f"{self._space}{name}:"
        return derived

    @property
    def _state(self) -> str:
        if not self._redis.enabled:
            return "disabled"
        return "up" if self._shelf.outage.up else "down"

    def stats(self) -> CacheStats:
        """What happened so far."""
        count, tier = self._count, self._tier
        return CacheStats(
            local_hits=count.local_hits, redis_hits=count.redis_hits, misses=count.misses, unreadable=count.unreadable,
            loads=count.loads, load_errors=count.load_errors, joined=count.joined, waited=count.waited,
            stale_serves=count.stale_serves, refreshes=count.refreshes, refused_stores=count.refused_stores,
            errors=self._shelf.outage.failures, bytes_read=count.bytes_read, bytes_written=count.bytes_written,
            local_entries=len(tier.entries), local_bytes=tier.bytes, evictions=tier.evictions,
            invalidations=tier.invalidations, state=self._state, local_trusted=tier.trusted,
        )  # fmt: skip

    # --- one value ---

    @overload
    async def get(self, key: str, type: type[T]) -> T | None: ...
    @overload
    async def get(self, key: str, type: type[T], *, default: D) -> T | D: ...
    @overload
    async def get(self, key: str, type: Any = Any, *, default: Any = None) -> Any: ...
    async def get(self, key: str, type: Any = Any, *, default: Any = None) -> Any:  # noqa: A002 - the contract's name
        """The value, or `default` when there is none that can be read as `type` and is fresh."""
        if self._space:
            key = self._space + key
        local = self._entries.get(key)
        if local is not None and (local.type is type or local.type == type):
            now = monotonic()
            if now < local.soft_at and now < self._tier.trusted_until:
                local.used = True
                self._count.local_hits += 1
                return local.value if local.copy is None else local.copy()
        if not self._tether.started:
            self._tether.start()
        reading = await self._reader.read(key, codec_for(type), aged=False)
        if reading is None or reading.fresh_left_s <= 0:
            self._count.misses += 1
            if self._raises and reading is None and not self._shelf.outage.up:
                raise self._shelf.outage.error()
            return default
        self._count.redis_hits += 1
        return reading.value

    async def set(self, key: str, value: Any, ttl: Lifetime = TTL.MEDIUM, tags: Sequence[str] = ()) -> None:
        """
        Store a value for `ttl` seconds; a load of this key that is under way will not overwrite it.

        When it could not be stored, the old value is removed as soon as Redis answers, so that it does not come back.
        """
        await self._set_all({key: value}, ttl, tags, jitter=False)

    async def delete(self, key: str) -> bool:
        """Remove a value, and the right of loads under way to store one. Whether there was a value."""
        key = self._name(key)
        self._forget(key)
        reply = await self._shelf.delete(key)
        self._tier.drop(key)  # what was read between our question and its answer
        self._answered(reply)
        return bool(reply)

    async def delete_if(self, key: str, expected: Any, type: Any = Any) -> bool:  # noqa: A002 - as in get
        """
        Remove a value only if it still equals `expected`; whether that was so.

        For a token that the upstream refuses: of many processes that notice, each removes only the token that it
        used, never the one that another has just obtained. A load under way goes on.
        """
        key = self._name(key)
        raw = await self._shelf.get(key)
        self._answered(raw)
        reading, entry = await self._reader.readable(raw, 0, codec_for(type)) if raw else (None, None)
        if reading is None or entry is None or reading.value != expected:
            return False
        self._tier.drop(key)
        reply = await self._shelf.delete_if(key, entry.identity)
        self._tier.drop(key)
        self._answered(reply)
        return bool(reply)

    async def invalidate(self, tag: str) -> None:
        """Remove every value that carries `tag`, also those being loaded right now. One command, however many."""
        tag = self._name(tag)
        self._loads.forget_tag(tag)
        self._tier.drop_tag(tag)
        reply = await self._shelf.invalidate(tag)
        self._tier.drop_tag(tag)
        self._answered(reply)

    @overload
    async def get_or_set(
        self, key: str, load: Callable[[], Awaitable[T] | T], type: type[T], *,
        ttl: Lifetime | Callable[[T], Lifetime] = ..., stale_s: float = ..., error_ttl_s: float = ...,
        tags: Sequence[str] = ...,
    ) -> T: ...  # fmt: skip
    @overload
    async def get_or_set(
        self, key: str, load: Callable[[], Any], type: Any = Any, *,
        ttl: Lifetime | Callable[[Any], Lifetime] = ..., stale_s: float = ..., error_ttl_s: float = ...,
        tags: Sequence[str] = ...,
    ) -> Any: ...  # fmt: skip
    async def get_or_set(
        self,
        key: str,
        load: Callable[[], Any],
        type: Any = Any,  # noqa: A002 - the contract's name
        *,
        ttl: Lifetime | Callable[[Any], Lifetime] = TTL.MEDIUM,
        stale_s: float = 0.0,
        error_ttl_s: float = 1.0,
        tags: Sequence[str] = (),
    ) -> Any:
        """
        The value; where there is none, `load()` makes it, once for all callers in all processes.

        `ttl` may be a function of the loaded value (a token knows when it expires) and is then kept exactly. For
        `stale_s` beyond it the old value is served at once while one process loads a new one, and goes on being served
        when that fails. Of a value that can be changed every caller gets a copy of its own.

        Raises:
            Exception: what the loader raised, for `error_ttl_s` also to those who ask later, in every process; where
                it cannot be rebuilt in another process, `LoadFailedError` with the same words.
            LoadTimeoutError: the loader did not return within `load_timeout_s`.
            CacheTypeError: what it returned is not of this type, or cannot be encoded.
        """
        name = self._space + key if self._space else key
        local = self._entries.get(name)
        if local is not None and (local.type is type or local.type == type):
            now = monotonic()
            if now < local.fresh_until and now < self._tier.trusted_until:
                local.used = True
                self._count.local_hits += 1
                return local.value if local.copy is None else local.copy()
        reading: Reading | None = None
        if local is not None and local.type == type and self._serves(local, stale_s):
            local.used = True
            self._count.local_hits += 1
            reading = Reading.of_local(local, now)
        else:
            flight = self._loads.flights.get(name)
            if flight is None or flight.background:  # else it is being loaded: no need to look
                if not self._tether.started:
                    self._tether.start()
                reading = await self._reader.read(name, codec_for(type), aged=self._eagerness > 0)
            if reading is None or reading.fresh_left_s <= -stale_s:
                self._count.misses += 1
                plan = self._plan(key, load, type, ttl, stale_s, error_ttl_s, tags)
                return await self._load_single(name, plan, reading)
            self._count.redis_hits += 1
        if self._is_due(reading):
            plan = self._plan(key, load, type, ttl, stale_s, error_ttl_s, tags)
            self._loads.refresh(name, plan, reading.identity)
        return reading.value

    def cached(
        self,
        *,
        key: str,
        ttl: Lifetime = TTL.MEDIUM,
        type: Any = None,  # noqa: A002 - as in get
        stale_s: float = 0.0,
        error_ttl_s: float = 1.0,
        tags: Sequence[str] = (),
    ) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
        """
        Cache what an async function returns, under a key made from its arguments: `key="stock:{code}"`.

        Tags may have fields, too. The type is the annotated one unless given. The function gets two attributes:
        `key_of(*args)` and `forget(*args)`, which deletes.

        Raises:
            ValueError: a template names something that is not a parameter; raised when the function is decorated.
        """
        milliseconds(ttl, key)

        def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
            key_of = KeyTemplate(key, function)
            tags_of = [KeyTemplate(tag, function) for tag in tags]
            returned = result_type(function) if type is None else type

            @functools.wraps(function)
            async def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
                result: T = await self.get_or_set(
                    key_of(*args, **kwargs),
                    functools.partial(function, *args, **kwargs),
                    returned,
                    ttl=ttl,
                    stale_s=stale_s,
                    error_ttl_s=error_ttl_s,
                    tags=[tag_of(*args, **kwargs) for tag_of in tags_of],
                )
                return result

            async def forget(*args: P.args, **kwargs: P.kwargs) -> bool:
                return await self.delete(key_of(*args, **kwargs))

            wrapped.__dict__.update(key_of=key_of, forget=forget)
            return wrapped

        return decorate

    # --- many values ---

    async def get_many(self, keys: Iterable[str], type: Any = Any) -> dict[str, Any]:  # noqa: A002 - as in get
        """The fresh values that are there, by key, in one round trip. A missing key is absent from the result."""
        names = {self._name(key): key for key in keys}
        readings = await self._read_all(list(names), type)
        fresh = {names[name]: each.value for name, each in readings.items() if each.fresh_left_s > 0}
        self._count.misses += len(names) - len(fresh)
        return {key: fresh[key] for key in names.values() if key in fresh}

    async def set_many(self, values: Mapping[str, Any], ttl: Lifetime = TTL.MEDIUM, tags: Sequence[str] = ()) -> None:
        """Store many values in one round trip (one more when they carry tags)."""
        await self._set_all(values, ttl, tags, jitter=True)

    async def get_or_set_many(
        self,
        keys: Iterable[str],
        load_many: Callable[[list[str]], Any],
        type: Any = Any,  # noqa: A002 - as in get
        *,
        ttl: Lifetime | Callable[[Any], Lifetime] = TTL.MEDIUM,
        stale_s: float = 0.0,
        error_ttl_s: float = 1.0,
        tags: Sequence[str] = (),
    ) -> dict[str, Any]:
        """
        The values by key; `load_many(missing)` returns a mapping of those that are missing.

        It is called once, with the keys that nobody else is loading; overlapping batches load each key once. A key that
        it does not return is absent from the result and not cached; one that it was not asked for is ignored (storing
        it could bring back what was deleted meanwhile); a key given twice counts once. An error fails the whole call.
        """
        names = {self._name(key): key for key in keys}
        readings = await self._read_all(list(names), type, raises=False)
        missing = [name for name in names if name not in readings or readings[name].fresh_left_s <= -stale_s]
        found = {name: each.value for name, each in readings.items() if name not in missing}
        due = [name for name in found if self._is_due(readings[name])]

        def plans(wanted: list[str]) -> Iterator[tuple[str, Plan]]:
            batch = Batch(wanted, functools.partial(_load_named, load_many, names), self._loads)
            for name in wanted:
                load = functools.partial(batch.load, name)
                yield name, self._plan(names[name], load, type, ttl, stale_s, error_ttl_s, tags, batch)

        for name, plan in plans(due):
            self._loads.refresh(name, plan, readings[name].identity)
        self._count.misses += len(missing)
        outcomes = await asyncio.gather(
            *(self._load(name, plan, readings.get(name)) for name, plan in plans(missing)), return_exceptions=True
        )
        for name, outcome in zip(missing, outcomes, strict=True):
            if isinstance(outcome, AbsentError):
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            found[name] = outcome
        return {key: found[name] for name, key in names.items() if name in found}

    # --- looking in ---

    async def inspect(self, key: str) -> CacheEntry | None:
        """What lies in Redis under this key, without its type; None when there is nothing that can be read."""
        name = self._name(key)
        raw, left_ms = await self._shelf.get_with_ttl(name)
        self._answered(raw)
        if not raw:
            return None
        reading, entry = await self._reader.readable(raw, left_ms, codec_for(Any))
        if reading is None or entry is None:
            return None
        return CacheEntry(
            key, reading.value, left_ms / 1000 if left_ms >= 0 else None, reading.fresh_left_s, reading.delta_s,
            tuple(tag for tag, _ in entry.tags), len(raw),
        )  # fmt: skip

    async def keys(self, pattern: str = "*", limit: int = 1000) -> list[str]:
        """
        Keys that match a glob pattern, at most `limit`, sorted; found by SCAN, which never blocks the server.

        On a large server it takes many round trips. Keys that come or go meanwhile may or may not be among them.
        """
        start, found, cursor = self._shelf.values + "{" + self._space, set[str](), b"0"
        match = "".join(f"\\{char}" if char in "*?[]\\" else char for char in start) + pattern + "}"
        while len(found) < limit:
            reply = await self._shelf.ask("SCAN", cursor, "MATCH", match, "COUNT", 500)
            self._answered(reply)
            if reply is UNANSWERED:
                break
            cursor, names = reply
            found.update(name.decode(errors="replace")[len(start) : -1] for name in names)
            if cursor == b"0":
                break
        return sorted(found)[:limit]

    # --- inside ---

    def _name(self, key: str) -> str:
        if not key or key[0] == "}":
            raise ValueError(f"cache key or tag {key!r} must not be empty or begin with a closing brace")
        return self._space + key

    def _plan(  # noqa: PLR0917 - what the public functions were given, in their order
        self, key: str, load: Callable[[], Any], type_: Any, ttl: Lifetime | Callable[[Any], Lifetime],
        stale_s: float, error_ttl_s: float, tags: Sequence[str], batch: Batch | None = None,
    ) -> Plan:  # fmt: skip
        self._name(key)
        if not callable(ttl):
            milliseconds(ttl, key)
        if stale_s < 0 or error_ttl_s < 0:
            raise ValueError(f"stale_s={stale_s} and error_ttl_s={error_ttl_s} of {key!r} must not be negative")
        return Plan(
            codec_for(type_), load, ttl, stale_s, error_ttl_s, tuple(map(self._name, tags)),
            batch.decided if batch is not None else None, batch is None,
        )  # fmt: skip

    async def _load_single(self, key: str, plan: Plan, reading: Reading | None) -> Any:
        while True:
            try:
                return await self._load(key, plan, reading)
            except AbsentError:  # we joined a batch, and its loader knows nothing of this key; ours may
                continue

    async def _load(self, key: str, plan: Plan, reading: Reading | None) -> Any:
        flight = self._loads.flights.get(key)
        if flight is None:
            error = self._loads.failures.get(key)
            if error is not None:
                if plan.decided is not None:
                    plan.decided(key, False)
                raise error
        flight = self._loads.board(key, plan, reading.identity if reading is not None else b"")
        value = await flight.wait()
        if flight.codec is plan.codec:
            return value
        try:
            return plan.codec.payload(encode(value))  # another caller's type: ours may be different
        except ValueError:
            return await self._loads.board(key, plan).wait()

    def _serves(self, local: LocalEntry, stale_s: float) -> bool:
        now = monotonic()
        return now < self._tier.trusted_until and now < min(local.expires_at, local.soft_at + stale_s)

    def _is_due(self, reading: Reading) -> bool:
        """Whether the caller who got this value shall have it loaded anew: it is stale, or soon to be."""
        self._count.stale_serves += reading.fresh_left_s <= 0
        return reading.fresh_left_s <= 0 or is_early(reading.fresh_left_s, reading.delta_s, self._eagerness)

    async def _read_all(self, names: list[str], type_: Any, *, raises: bool = True) -> dict[str, Reading]:
        """From both tiers; counts the hits."""
        if not names:
            return {}
        if not self._tether.started:
            self._tether.start()
        now, codec = monotonic(), codec_for(type_)
        found: dict[str, Reading] = {}
        if now < self._tier.trusted_until:
            for name in names:
                local = self._entries.get(name)
                if local is not None and local.type == type_ and now < local.fresh_until:
                    local.used = True
                    found[name] = Reading.of_local(local, now)
        self._count.local_hits += len(found)
        readings = await self._reader.read_all([name for name in names if name not in found], codec)
        if raises and len(readings) + len(found) < len(names) and not self._shelf.outage.up:
            self._answered(UNANSWERED)
        self._count.redis_hits += sum(each.fresh_left_s > 0 for each in readings.values())
        return found | readings

    async def _set_all(self, values: Mapping[str, Any], ttl: Lifetime, tags: Sequence[str], *, jitter: bool) -> None:
        items = []
        for key, value in values.items():
            name = self._name(key)
            ttl_ms = self._loads.ttl_ms(name, ttl) if jitter else milliseconds(ttl, name)
            items.append((name, encoded(name, value), fingerprint_of_value(value), ttl_ms))
        if not items:
            return
        for name, *_ in items:
            self._forget(name)
        tags = [self._name(tag) for tag in tags]
        generations = await self._shelf.make_generations(tags, os.urandom(12).hex().encode()) if tags else []
        if generations is UNANSWERED:
            await asyncio.gather(*(self._shelf.delete(name) for name, *_ in items))
            self._answered(UNANSWERED)
            return
        tagged = tuple(zip(tags, generations, strict=True))
        envelopes = [
            (name, pack(payload, mark, hard_ms=ttl_ms, soft_ms=ttl_ms, tags=tagged), ttl_ms)
            for name, payload, mark, ttl_ms in items
        ]
        self._count.bytes_written += sum(len(envelope) for _, envelope, _ in envelopes)
        replies = await self._shelf.set_all(envelopes, tags)
        for name, *_ in items:
            self._tier.drop(name)  # what was read between our question and its answer
        for reply in replies:
            self._answered(reply)

    def _forget(self, name: str) -> None:
        self._loads.forget(name)
        self._tier.drop(name)

    def _answered(self, reply: Any) -> None:
        if reply is UNANSWERED and self._raises:
            raise self._shelf.outage.error()

    async def _close(self) -> None:
        await self._tether.close()
        await self._loads.close()
        await self._shelf.outage.close()


async def _load_named(load_many: Callable[[list[str]], Any], names: Mapping[str, str], asked: list[str]) -> Any:
    """The batch loader speaks of keys, the cache of names with their namespace."""
    loaded = await call(functools.partial(load_many, [names[name] for name in asked]))
    if not isinstance(loaded, Mapping):
        raise TypeError(f"load_many returned {type(loaded).__name__}, not a mapping of keys to values")
    return {name: loaded[names[name]] for name in asked if names[name] in loaded}


def _check(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name}={value} must lie between {least:g} and {most:g}")


__all__ = ["TTL", "Cache", "CacheEntry", "CacheStats"]
