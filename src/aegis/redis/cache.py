"""
The shared cache: one load in the whole fleet, typed values, and an outage that costs milliseconds.

A value is loaded under a lease in Redis. Whoever holds the lease loads; the others wait for the announcement that the
script makes which stores the value. Whoever sets or deletes the key takes the lease away, so a load that began before
can no longer overwrite what came after. Tags are generations that an entry carries from before its load, so no clocks
are compared. Rejected: SET NX beside GET (two questions, and a late holder overwrites), polling for the lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from inspect import isawaitable
from typing import Any, TypeVar, overload

import msgspec

from aegis.errors import CacheTypeError, LoadFailedError, LoadTimeoutError
from aegis.redis._envelope import Codec, Entry, codec_for, encode, pack, unpack
from aegis.redis._feed import Feed
from aegis.redis._flight import Flight, fresh
from aegis.redis._sharing import copier
from aegis.redis._shelf import UNANSWERED, Shelf
from aegis.redis.client import Redis

T = TypeVar("T")
D = TypeVar("D")
Lifetime = float | timedelta
_MISSING: Any = object()


class TTL:
    """Times to live, in seconds."""

    SHORT = 60.0
    MEDIUM = 600.0
    LONG = 3600.0
    DAILY = 86400.0


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What happened since the cache was made."""

    redis_hits: int = 0
    misses: int = 0
    loads: int = 0
    load_errors: int = 0
    joined: int = 0  #: callers who waited for somebody else's load in this process
    redis_errors: int = 0
    up: bool = True

    @property
    def hits(self) -> int:
        """Hits of all tiers."""
        return self.redis_hits


@dataclass(slots=True)
class _Counters:
    redis_hits: int = 0
    misses: int = 0
    loads: int = 0
    load_errors: int = 0
    joined: int = 0


@dataclass(frozen=True, slots=True)
class _Plan:
    """How one `get_or_set` wants its value."""

    codec: Codec
    load: Callable[[], Any]
    ttl: Lifetime | Callable[[Any], Lifetime]
    error_ttl_s: float
    tags: tuple[str, ...]


class Cache:
    """
    Values shared by all processes that use the same server and prefix.

    Its background work ends with the `Redis` it was given. `lease_s` is how long a load's right lasts unless renewed:
    after a `kill -9` of the loading process another one loads within that time. `load_timeout_s` ends a loader that
    hangs. `patience_s` is the longest wait for one answer of the server before the cache goes on without it.
    """

    def __init__(
        self,
        redis: Redis,
        prefix: str = "aegis",
        *,
        lease_s: float = 5.0,
        load_timeout_s: float = 30.0,
        patience_s: float = 0.1,
        jitter: float = 0.05,
    ) -> None:
        if not 0 < lease_s <= 10:
            raise ValueError(f"lease_s={lease_s} must be above 0 and at most 10")
        self._redis, self._lease_ms, self._load_timeout_s = redis, int(lease_s * 1000), load_timeout_s
        self._jitter = jitter
        self._shelf = Shelf(redis, prefix, patience_s)
        self._count = _Counters()
        self._flights: dict[str, Flight] = {}
        self._failures: dict[str, tuple[float, Exception]] = {}
        self._announced: dict[str, asyncio.Event] = {}
        self._feed: Feed | None = None
        self._feed_up = False
        self._background: set[asyncio.Task[Any]] = set()
        redis.on_close(self._close)

    def __repr__(self) -> str:
        state = "disabled" if not self._redis.enabled else "up" if self._shelf.outage.up else "without Redis"
        return f"<Cache {self._shelf.prefix!r} {state} flights={len(self._flights)}>"

    def stats(self) -> CacheStats:
        """What happened so far."""
        count = self._count
        return CacheStats(
            count.redis_hits, count.misses, count.loads, count.load_errors, count.joined,
            self._shelf.outage.failures, self._shelf.outage.up,
        )  # fmt: skip

    # --- one value ---

    @overload
    async def get(self, key: str, type: type[T]) -> T | None: ...
    @overload
    async def get(self, key: str, type: type[T], *, default: D) -> T | D: ...
    @overload
    async def get(self, key: str, type: Any = Any, *, default: Any = None) -> Any: ...
    async def get(self, key: str, type: Any = Any, *, default: Any = None) -> Any:  # noqa: A002 - the contract's name
        """The value, or `default` when there is none that can be read as `type`."""
        codec = codec_for(type)
        raw = await self._shelf.ask("GET", self._shelf.value_key(key))
        entry, value = await self._readable(raw, codec)
        if entry is None:
            self._count.misses += 1
            return default
        self._count.redis_hits += 1
        return value

    async def set(self, key: str, value: Any, ttl: Lifetime = TTL.MEDIUM, tags: Sequence[str] = ()) -> None:
        """Store a value for `ttl` seconds; a load of this key that is under way will not overwrite it."""
        ttl_ms = milliseconds(ttl, key)
        payload = _encoded(key, value)
        self._forget(key)
        generations = await self._generations_made(tags)
        if generations is None:
            return
        fingerprint = codec_for(type(value)).fingerprint_of(value) if not isinstance(value, dict | list) else bytes(4)
        envelope = pack(payload, fingerprint, hard_ms=ttl_ms, soft_ms=ttl_ms, tags=generations)
        await self._shelf.set(key, envelope, ttl_ms, tags)

    async def delete(self, key: str) -> bool:
        """Remove a value, and the right of loads under way to store one. Whether there was a value."""
        self._forget(key)
        return bool(await self._shelf.delete(key))

    async def delete_if(self, key: str, expected: Any, type: Any = Any) -> bool:  # noqa: A002 - the contract's name
        """
        Remove a value only if it still equals `expected`; whether that was so.

        For a token that the upstream refuses: of many processes that notice, each removes only the token that it
        used, never the one that another has just obtained.
        """
        raw = await self._shelf.ask("GET", self._shelf.value_key(key))
        entry, value = await self._readable(raw, codec_for(type))
        if entry is None or value != expected:
            return False
        return bool(await self._shelf.delete_if(key, entry.identity))

    async def invalidate(self, tag: str) -> None:
        """Remove every value that carries `tag`, also those being loaded right now. One command, however many."""
        for flight in [flight for flight in self._flights.values() if tag in flight.tags]:
            self._forget(flight.key)
        await self._shelf.invalidate(tag)

    @overload
    async def get_or_set(
        self, key: str, load: Callable[[], Awaitable[T]], type: type[T], *,
        ttl: Lifetime | Callable[[T], Lifetime] = ..., error_ttl_s: float = ..., tags: Sequence[str] = ...,
    ) -> T: ...  # fmt: skip
    @overload
    async def get_or_set(
        self, key: str, load: Callable[[], Any], type: Any = Any, *,
        ttl: Lifetime | Callable[[Any], Lifetime] = ..., error_ttl_s: float = ..., tags: Sequence[str] = ...,
    ) -> Any: ...  # fmt: skip
    async def get_or_set(
        self,
        key: str,
        load: Callable[[], Any],
        type: Any = Any,  # noqa: A002 - the contract's name
        *,
        ttl: Lifetime | Callable[[Any], Lifetime] = TTL.MEDIUM,
        error_ttl_s: float = 1.0,
        tags: Sequence[str] = (),
    ) -> Any:
        """
        The value; where there is none, `load()` makes it, once for all callers in all processes.

        `ttl` may be a function of the loaded value (a token knows when it expires) and is then kept exactly; a fixed
        one is shortened by a few per cent at random, so that what was loaded together does not expire together.

        Raises:
            Exception: what the loader raised, for `error_ttl_s` also to those who ask later.
            LoadTimeoutError: the loader did not return within `load_timeout_s`.
        """
        if not callable(ttl):
            milliseconds(ttl, key)
        codec = codec_for(type)
        flight = self._flights.get(key)
        if flight is None:
            raw = await self._shelf.ask("GET", self._shelf.value_key(key))
            entry, value = await self._readable(raw, codec)
            if entry is not None:
                self._count.redis_hits += 1
                return value
            flight = self._flights.get(key)
        self._count.misses += 1
        if flight is not None:
            self._count.joined += 1
            return await flight.wait()
        failure = self._failures.get(key)
        if failure is not None:
            if failure[0] > time.monotonic():
                raise fresh(failure[1])
            del self._failures[key]
        flight = self._flights[key] = Flight(key, self._landed)
        flight.tags = tuple(tags)
        flight.start(self._fly(flight, _Plan(codec, load, ttl, error_ttl_s, flight.tags)))
        return await flight.wait()

    # --- many values ---

    async def get_many(self, keys: Iterable[str], type: Any = Any) -> dict[str, Any]:  # noqa: A002 - the contract's name
        """The values that are there, by key, in one round trip."""
        names = list(dict.fromkeys(keys))
        if not names:
            return {}
        codec, found = codec_for(type), {}
        raws = await self._shelf.ask("MGET", *(self._shelf.value_key(name) for name in names))
        for name, raw in zip(names, raws or [None] * len(names), strict=True):
            entry, value = await self._readable(raw, codec)
            if entry is not None:
                found[name] = value
        self._count.redis_hits += len(found)
        self._count.misses += len(names) - len(found)
        return found

    async def set_many(self, values: Mapping[str, Any], ttl: Lifetime = TTL.MEDIUM, tags: Sequence[str] = ()) -> None:
        """Store many values in one round trip."""
        await asyncio.gather(*(self.set(key, value, ttl, tags) for key, value in values.items()))

    async def get_or_set_many(
        self,
        keys: Iterable[str],
        load_many: Callable[[list[str]], Any],
        type: Any = Any,  # noqa: A002 - the contract's name
        *,
        ttl: Lifetime = TTL.MEDIUM,
        error_ttl_s: float = 1.0,
        tags: Sequence[str] = (),
    ) -> dict[str, Any]:
        """
        The values by key; `load_many(missing)` returns a mapping of those that are missing.

        A key that the loader does not return is absent from the result and not cached; one that nobody asked for is
        ignored; a key given twice is loaded once.
        """
        found = await self.get_many(keys, type)
        batch = _Batch([key for key in dict.fromkeys(keys) if key not in found], load_many)
        outcomes = await asyncio.gather(
            *(
                self.get_or_set(key, partial(batch.load, key), type, ttl=ttl, error_ttl_s=error_ttl_s, tags=tags)
                for key in batch.keys
            ),
            return_exceptions=True,
        )
        for key, outcome in zip(batch.keys, outcomes, strict=True):
            if isinstance(outcome, _AbsentError):
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            found[key] = outcome
        return found

    # --- loading ---

    async def _fly(self, flight: Flight, plan: _Plan) -> Callable[[], Any]:
        """Get the value from whoever has it, or load it."""
        key, token, seen = flight.key, os.urandom(16).hex().encode(), b""
        self._start_feed()
        while True:
            event = self._announced.setdefault(key, asyncio.Event())
            event.clear()
            reply = await self._shelf.lead(key, token, self._lease_ms, seen, plan.tags)
            if reply is UNANSWERED or reply is None:
                return await self._load(flight, plan, None, ())
            state, raw, left_ms, *generations = reply
            if state == 0:
                return await self._load(flight, plan, token, tuple(generations))
            if state == 1:
                entry, value = await self._readable(raw, plan.codec)
                if entry is not None:
                    self._count.redis_hits += 1
                    return _sharer(value, partial(plan.codec.payload, entry.payload))
                seen = raw[:64]
                continue
            if state == 3:
                raise LoadFailedError(key, raw.decode(errors="replace"))
            await self._announcement(event, left_ms)

    async def _announcement(self, event: asyncio.Event, left_ms: int) -> None:
        """Wait until the load elsewhere is announced as ended, its lease runs out, or without a feed a little."""
        limit_s = max(left_ms, 1) / 1000 + random.uniform(0.001, 0.02)
        if self._feed is None or not self._feed_up:
            limit_s = min(limit_s, random.uniform(0.05, 0.25))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await event.wait()

    async def _load(
        self, flight: Flight, plan: _Plan, token: bytes | None, generations: tuple[bytes, ...]
    ) -> Callable[[], Any]:
        """Run the loader and store what it brings; without a token nothing can be stored."""
        key = flight.key
        renewal = self._spawn(self._keep_lease(key, token)) if token else None
        self._count.loads += 1
        started = time.perf_counter()
        try:
            value = await self._loaded(key, plan.load)
            payload = _encoded(key, value)
            value = _typed(key, payload, plan.codec, value)
            ttl_ms = self._ttl_ms(key, plan.ttl, value)
        except asyncio.CancelledError:
            if token:
                self._spawn(self._shelf.release(key, token))
            raise
        except Exception as exc:
            self._count.load_errors += 1
            self._remember_failure(key, exc, plan.error_ttl_s)
            if token:
                await self._shelf.release(key, token)
            raise
        finally:
            if renewal is not None:
                renewal.cancel()
        if token:
            tags = tuple(zip(plan.tags, generations, strict=True))
            delta_s = time.perf_counter() - started
            envelope = pack(
                payload, plan.codec.fingerprint_of(value), hard_ms=ttl_ms, soft_ms=ttl_ms, delta_s=delta_s, tags=tags
            )
            await self._shelf.store(key, token, envelope, ttl_ms, plan.tags)
        return _sharer(value, partial(plan.codec.payload, payload))

    async def _loaded(self, key: str, load: Callable[[], Any]) -> Any:
        """What the loader returns, within its deadline. A loader that ignores its cancellation is left behind."""
        task = asyncio.ensure_future(_call(load))
        try:
            done, _ = await asyncio.wait({task}, timeout=self._load_timeout_s)
        except asyncio.CancelledError:
            _abandon(task)
            raise
        if not done:
            _abandon(task)
            raise LoadTimeoutError(key, self._load_timeout_s)
        if task.cancelled():
            raise LoadFailedError(key, "the loader cancelled itself")
        return task.result()

    async def _keep_lease(self, key: str, token: bytes) -> None:
        while True:
            await asyncio.sleep(self._lease_ms / 3000)
            if await self._shelf.renew(key, token, self._lease_ms) == 0:
                return

    def _ttl_ms(self, key: str, ttl: Lifetime | Callable[[Any], Lifetime], value: Any) -> int:
        if callable(ttl):
            return milliseconds(ttl(value), key)
        exact = milliseconds(ttl, key)
        return max(1, int(exact * (1 - random.random() * self._jitter)))

    def _remember_failure(self, key: str, exc: Exception, error_ttl_s: float) -> None:
        if error_ttl_s > 0:
            if len(self._failures) >= 1024:
                self._failures.clear()
            self._failures[key] = (time.monotonic() + error_ttl_s, fresh(exc).with_traceback(None))

    # --- what is shared ---

    async def _readable(self, raw: Any, codec: Codec) -> tuple[Entry | None, Any]:
        """The entry and its value, if these bytes are one that `codec` can read and no tag has been invalidated."""
        entry = unpack(raw)
        if entry is None:
            return None, None
        try:
            value = codec.decode(entry)
        except (ValueError, msgspec.MsgspecError):
            return None, None
        if entry.tags:
            present = await self._shelf.generations([tag for tag, _ in entry.tags])
            if present != [generation for _, generation in entry.tags]:
                return None, None
        return entry, value

    async def _generations_made(self, tags: Sequence[str]) -> tuple[tuple[str, bytes], ...] | None:
        if not tags:
            return ()
        reply = await self._shelf.tags(tags, os.urandom(16).hex().encode())
        if not isinstance(reply, list):
            return None
        return tuple(zip(tags, reply, strict=True))

    def _forget(self, key: str) -> None:
        """Who asks from now on must not board a load that began before."""
        self._flights.pop(key, None)
        self._failures.pop(key, None)

    def _landed(self, flight: Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
            self._announced.pop(flight.key, None)

    # --- background ---

    def _start_feed(self) -> None:
        if self._feed is None and self._redis.enabled:
            self._feed = Feed(self._redis.config, self._on_message, self._on_up, self._on_down)
            self._feed.start()
            self._spawn(self._feed.subscribe(self._shelf.channel.encode()))

    def _on_up(self) -> None:
        self._feed_up = True
        self._wake_all()

    def _on_down(self, why: str) -> None:
        del why
        self._feed_up = False
        self._wake_all()

    def _on_message(self, channel: bytes, payload: Any) -> None:
        del channel
        event = self._announced.get(payload.decode())
        if event is not None:
            event.set()

    def _wake_all(self) -> None:
        for event in self._announced.values():
            event.set()

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _close(self) -> None:
        for flight in list(self._flights.values()):
            if flight.task is not None:
                flight.task.cancel()
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._feed is not None:
            await self._feed.close()
        await self._shelf.outage.close()


class _AbsentError(Exception):
    """The batch loader did not return this key."""


class _Batch:
    """Collects the keys that fall to this process in one loop turn or round trip, and loads them together."""

    def __init__(self, keys: list[str], load_many: Callable[[list[str]], Any]) -> None:
        self.keys, self._load_many = keys, load_many
        self._asked: dict[str, asyncio.Future[Any]] = {}

    async def load(self, key: str) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if not self._asked:
            asyncio.get_running_loop().call_soon(self._go)
        self._asked[key] = future
        return await future

    def _go(self) -> None:
        asked, self._asked = self._asked, {}
        task = asyncio.ensure_future(_call(partial(self._load_many, list(asked))))
        task.add_done_callback(partial(self._share, asked))

    def _share(self, asked: dict[str, asyncio.Future[Any]], task: asyncio.Task[Any]) -> None:
        exc: BaseException | None = asyncio.CancelledError() if task.cancelled() else task.exception()
        for key, future in asked.items():
            if future.done():
                continue
            if isinstance(exc, Exception):
                future.set_exception(fresh(exc))
            elif exc is not None:
                future.cancel()
            elif key in task.result():
                future.set_result(task.result()[key])
            else:
                future.set_exception(_AbsentError(key))


def milliseconds(ttl: Lifetime, key: str) -> int:
    """A time to live as whole milliseconds; ValueError names the key when it is not one."""
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if not 0.001 <= seconds <= 3.2e10:  # a thousand years; Redis refuses what overflows 64 bits of ms
        raise ValueError(f"ttl={ttl!r} of {key!r} must be at least 0.001 s and at most 3.2e10 s")
    return round(seconds * 1000)


def _encoded(key: str, value: Any) -> bytes:
    try:
        return encode(value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise CacheTypeError(key, f"{type(value).__name__} cannot be encoded: {exc}") from exc


def _typed(key: str, payload: bytes, codec: Codec, value: Any) -> Any:
    """What a later reader will get: the loaded value as the declared type."""
    if codec.type is Any:
        return value
    try:
        return codec.payload(payload)
    except ValueError as exc:
        raise CacheTypeError(key, f"the loader returned {type(value).__name__}, not {codec.type}: {exc}") from exc


def _sharer(value: Any, decode: Callable[[], Any]) -> Callable[[], Any]:
    """Gives each caller the value, or where it can be changed, a copy."""
    return copier(value, decode) or (lambda: value)


async def _call(load: Callable[[], Any]) -> Any:
    value = load()
    return await value if isawaitable(value) else value


def _abandon(task: asyncio.Future[Any]) -> None:
    """Cancel without waiting, and take note of its outcome so that nobody reports it as lost."""
    task.cancel()
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
