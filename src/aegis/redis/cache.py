"""
The shared cache: one load in the whole fleet, a microsecond hit, and an outage that costs milliseconds.

Two tiers: decoded values in this process, which the server calls back when they change, and encoded ones in Redis. What
is in neither is loaded under a lease, by a task that outlives any single caller. When Redis does not answer, callers go
on without it. The room behind this file:

    caching/core      the parts, joined                   caching/many, look, cached   batches, looking in, decorator
    caching/reader    a value that may be trusted         caching/loads                who loads, who waits
    caching/tier      values in this process              caching/flight, places       one load: its callers, its task
    caching/tether    what the server calls back          caching/elsewhere            loads of other processes
    caching/shelf     keys and scripts in Redis           caching/alone, failure       without Redis; a loader's error
    caching/envelope, schema, tags, sharing               how a value lies there, and who may hold the object

Rejected: SET NX beside GET for the lock (a late holder overwrites), polling for it, timestamps for tags (clocks differ
between hosts), pickle (runs code of whoever can write to Redis).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, Literal, ParamSpec, TypeVar, overload

from aegis.redis.caching import cached, look, many
from aegis.redis.caching.core import Core, Options, Wish, named
from aegis.redis.caching.look import CacheEntry, CacheSurvey
from aegis.redis.caching.reader import Reading
from aegis.redis.caching.stats import TTL, CacheStats, Lifetime
from aegis.redis.client import Redis

T = TypeVar("T")
D = TypeVar("D")
P = ParamSpec("P")


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
    - `patience_s`: longest that one call waits for Redis, all its questions together (a batch a little longer), before
      this process goes on without it and asks again in the background.
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
        options = Options(
            local_entries,
            local_bytes,
            lease_s,
            load_timeout_s,
            patience_s,
            concurrent_loads,
            on_outage,
            jitter,
            eagerness,
        )
        self._join(Core(redis, prefix, options), "")

    def _join(self, core: Core, space: str) -> None:
        self._core, self._space = core, space
        self._tier, self._entries, self._count = core.tier, core.tier.entries, core.count  # for the hot path

    def __repr__(self) -> str:
        core, space = self._core, f" namespace={self._space[:-1]!r}" if self._space else ""
        local, loads = len(core.tier.entries), len(core.loads.flights)
        return f"<Cache {core.shelf.prefix!r}{space} {core.state} local={local} loads={loads}>"

    def namespace(self, name: str) -> Cache:
        """The same cache, with `name:` before every key and tag. It shares connection, tier and counts."""
        derived = object.__new__(Cache)
        derived._join(self._core, f"{named(self._space, name)}:")
        return derived

    def stats(self) -> CacheStats:
        """What happened so far."""
        return self._core.stats()

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
        core = self._core
        reading = await core.read(key, type, aged=False)
        if reading is None or reading.fresh_left_s <= 0:
            self._count.misses += 1
            if reading is None:
                core.answering()
            return default
        self._count.redis_hits += 1
        return reading.value

    async def set(self, key: str, value: Any, ttl: Lifetime = TTL.MEDIUM, tags: Sequence[str] = ()) -> None:
        """
        Store a value for `ttl` seconds; a load of this key that is under way will not overwrite it.

        When it could not be stored, the old value is removed as soon as Redis answers, so that it does not come back.
        """
        await many.set_all(self._core, self._space, {key: value}, ttl, tags, jitter=False)

    async def delete(self, key: str) -> bool:
        """Remove a value, and the right of loads under way to store one. Whether there was a value."""
        core, name = self._core, named(self._space, key)
        core.forget(name)
        reply = await core.shelf.delete(name)
        core.tier.drop(name)  # what was read between our question and its answer
        core.answered(reply)
        return bool(reply)

    async def delete_if(self, key: str, expected: Any, type: Any = Any) -> bool:  # noqa: A002 - as in get
        """
        Remove a value only if it still equals `expected`; whether that was so.

        For a token that the upstream refuses: of many processes that notice, each removes only the token that it
        used, never the one that another has just obtained. A load under way goes on.
        """
        core, name = self._core, named(self._space, key)
        found = await look.find(core, name, type)
        if found is None or found.reading.value != expected:
            return False
        core.tier.drop(name)
        reply = await core.shelf.delete_if(name, found.reading.identity)
        core.tier.drop(name)
        core.answered(reply)
        return bool(reply)

    async def invalidate(self, tag: str) -> None:
        """Remove every value that carries `tag`, also those being loaded right now. One command, however many."""
        core, name = self._core, named(self._space, tag)
        core.loads.forget_tag(name)
        core.tier.drop_tag(name)
        reply = await core.shelf.invalidate(name)
        core.tier.drop_tag(name)
        core.answered(reply)

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
        core, asked_at = self._core, monotonic()
        reading: Reading | None = None
        if local is not None and local.type == type and core.serves(local, asked_at, stale_s):
            local.used = True
            self._count.local_hits += 1
            reading = Reading.of_local(local, asked_at)
        else:
            flight = core.loads.flights.get(name)
            if flight is None or flight.background:  # else it is being loaded: no need to look
                reading = await core.read(name, type, aged=core.eagerness > 0)
            if reading is None or reading.fresh_left_s <= -stale_s:
                self._count.misses += 1
                plan = core.plan(
                    key, self._space, load, Wish(type, ttl, stale_s, error_ttl_s, tags),
                    core.shelf.patience(spent_s=monotonic() - asked_at),
                )  # fmt: skip
                return await core.load_single(name, plan, reading)
            self._count.redis_hits += 1
        if core.is_due(reading):
            wish = Wish(type, ttl, stale_s, error_ttl_s, tags)
            plan = core.plan(key, self._space, load, wish, core.shelf.patience())
            core.loads.refresh(name, plan, reading.identity)
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
        wish = Wish(type, ttl, stale_s, error_ttl_s, tags)
        return cached.decorator(self.get_or_set, self.delete, key, wish)

    # --- many values ---

    async def get_many(self, keys: Iterable[str], type: Any = Any) -> dict[str, Any]:  # noqa: A002 - as in get
        """The fresh values that are there, by key, in one round trip. A missing key is absent from the result."""
        return await many.get_many(self._core, self._space, keys, type)

    async def set_many(self, values: Mapping[str, Any], ttl: Lifetime = TTL.MEDIUM, tags: Sequence[str] = ()) -> None:
        """Store many values in one round trip (one more when they carry tags)."""
        await many.set_all(self._core, self._space, values, ttl, tags, jitter=True)

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
        wish = Wish(type, ttl, stale_s, error_ttl_s, tags)
        return await many.get_or_set_many(self._core, self._space, keys, load_many, wish)

    # --- looking in ---

    async def inspect(self, key: str) -> CacheEntry | None:
        """What lies in Redis under this key, without its type; None when there is nothing that can be read."""
        return await look.inspect(self._core, key, named(self._space, key))

    async def keys(self, pattern: str = "*", limit: int = 1000) -> list[str]:
        """
        Keys that match a glob pattern, at most `limit`, sorted; found by SCAN, which never blocks the server.

        On a large server it takes many round trips. Keys that come or go meanwhile may or may not be among them.
        """
        return await look.keys(self._core, self._space, pattern, limit)

    async def survey(self, on_step: Callable[[int, int], None] = lambda _looked_at, _of: None) -> CacheSurvey:
        """
        What lies in Redis under this cache's prefix, all namespaces together, counted by SCAN as in `keys`.

        `stats()` speaks of this process, this of the server. `on_step(looked_at, of)` is called after every step.
        """
        return await look.survey(self._core, on_step)


__all__ = ["TTL", "Cache", "CacheEntry", "CacheStats", "CacheSurvey"]
