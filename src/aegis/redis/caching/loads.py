"""
Loading: who does it, who waits, and what may be stored.

A load runs under a lease in Redis. Whoever holds it loads; others wait for the announcement that the script makes which
stores the value, or until the lease runs out (its holder was killed). Whoever sets or deletes the key takes the lease
away, and the script that stores asks for it first: a load that began before cannot overwrite what came after, and a
process that was stopped and wakes up cannot either.

    board -> flight -> lead -> 0 load -> store
                         ^     1 a value is there
                         |     2 somebody loads: wait -+
                         |     3 it failed lately      |
                         +-----------------------------+
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from aegis.errors import CacheTypeError
from aegis.redis.caching.alone import Alone
from aegis.redis.caching.background import Background
from aegis.redis.caching.elsewhere import Elsewhere
from aegis.redis.caching.envelope import Codec, encode, pack
from aegis.redis.caching.failure import Failures, rebuild, tell
from aegis.redis.caching.flight import Flight
from aegis.redis.caching.places import Places
from aegis.redis.caching.reader import Reader
from aegis.redis.caching.sharing import copier
from aegis.redis.caching.shelf import UNANSWERED, Patience, Shelf
from aegis.redis.caching.stats import Counters, Lifetime, milliseconds
from aegis.redis.caching.tags import Generations, Tags

log = logging.getLogger("aegis.redis")

Copies = Callable[[], Any]


class AbsentError(Exception):
    """A batch loader did not return this key. Never leaves the cache."""


class Plan(msgspec.Struct, frozen=True):
    """How one caller wants a value to be loaded."""

    codec: Codec
    load: Callable[[], Any]
    ttl: Lifetime | Callable[[Any], Lifetime]
    patience: Patience
    stale_s: float = 0.0
    error_ttl_s: float = 1.0
    tags: tuple[str, ...] = ()
    decided: Callable[[str, bool], None] | None = None  #: for batches: whether this process loads the key
    takes_place: bool = True  #: counts against the bound of concurrent loads


class Loads:
    """The loads of one process."""

    def __init__(
        self, shelf: Shelf, *, reader: Reader, tags: Tags, places: Places, counters: Counters, background: Background,
        lease_s: float, jitter: float,
    ) -> None:  # fmt: skip
        self._shelf, self._reader, self._tags, self._places = shelf, reader, tags, places
        self._count, self._background = counters, background
        self._lease_ms, self._jitter = int(lease_s * 1000), jitter
        self.flights: dict[str, Flight] = {}
        self.failures, self.alone = Failures(), Alone()
        self.elsewhere = Elsewhere(shelf, background)
        self._aloft: set[asyncio.Task[Any]] = set()
        self._complained: set[str] = set()
        shelf.outage.on_down, shelf.outage.on_up = self.elsewhere.wake_all, self.alone.clear

    # --- boarding ---

    def board(self, key: str, plan: Plan, seen: bytes = b"") -> Flight:
        """The flight for this key; a new one when none is under way."""
        flight = self.flights.get(key)
        if flight is not None:
            self._count.joined += 1
            if plan.decided is not None:
                plan.decided(key, False)
            return flight
        return self._take_off(key, plan, seen, background=False)

    def refresh(self, key: str, plan: Plan, seen: bytes) -> None:
        """Load again in the background, unless that is going on already or failed a moment ago."""
        if key not in self.flights and self._shelf.outage.up and self.failures.get(key) is None:
            self._take_off(key, plan, seen, background=True)
        else:
            self._decided(plan, key, mine=False)

    def _take_off(self, key: str, plan: Plan, seen: bytes, *, background: bool) -> Flight:
        flight = self.flights[key] = Flight(key, plan.codec, plan.tags, self._landed, background=background)
        task = flight.start(self._fly(flight, plan, seen))
        self._aloft.add(task)
        task.add_done_callback(self._aloft.discard)
        task.add_done_callback(lambda _: self._decided(plan, key, mine=False))
        return flight

    def _landed(self, flight: Flight) -> None:
        if self.flights.get(flight.key) is flight:
            del self.flights[flight.key]

    def forget(self, key: str) -> None:
        """The key was set or deleted: who asks from now on must not board a load that began before."""
        self.flights.pop(key, None)
        self.failures.forget(key)
        self.alone.forget(key)

    def forget_tag(self, tag: str) -> None:
        """As `forget`, for all keys that are being loaded with this tag."""
        for flight in [flight for flight in self.flights.values() if tag in flight.tags]:
            self.forget(flight.key)
        self.alone.forget_tag(tag)

    # --- flying ---

    async def _fly(self, flight: Flight, plan: Plan, seen: bytes) -> Copies:
        with self.elsewhere.listening(flight.key) as event:
            try:
                return await self._get_or_load(flight, plan, seen, event)
            except AbsentError:
                raise
            except Exception as exc:
                if flight.background:
                    self._complain(flight.key, exc)
                raise

    async def _get_or_load(self, flight: Flight, plan: Plan, seen: bytes, event: asyncio.Event) -> Copies:
        """Get the value from whoever has it, or load it."""
        key, token, waited = flight.key, os.urandom(12).hex().encode(), False
        while True:
            event.clear()  # before asking: what is announced from here on is newer than the answer
            reply, generations = await self._ask_to_lead(key, token, seen, plan)
            if reply is UNANSWERED:
                return await self._load(flight, plan, b"", ())
            state, raw, left_ms = reply
            if state == 0:
                if generations is not None:
                    return await self._load(flight, plan, token, generations)
                self._background.spawn(self._shelf.release(key, token))  # we could not store what it is for
                return await self._load(flight, plan, b"", ())
            if state == 1:
                reading, _ = await self._reader.readable(raw, left_ms, plan.codec, plan.patience)
                if reading is not None and reading.fresh_left_s > 0:
                    self._decided(plan, key, mine=False)
                    return sharer(reading.value, partial(plan.codec.payload, reading.payload))
                seen = raw[:64]  # of no use to this caller: ask for the right to replace it
                continue
            self._decided(plan, key, mine=False)
            if state == 3:
                exc = rebuild(key, raw)
                self.failures.add(key, exc, left_ms / 1000)
                raise exc
            self._count.waited += not waited
            waited = True
            await self.elsewhere.wait(key, event, left_ms)
            plan.patience.renew()

    async def _ask_to_lead(self, key: str, token: bytes, seen: bytes, plan: Plan) -> tuple[Any, Generations | None]:
        """Ask for the lease, and in the same write for the generations that the new value will carry."""
        lead = self._shelf.lead(key, token, self._lease_ms, seen, plan.patience)
        if not plan.tags:
            return await lead, ()
        return await asyncio.gather(lead, self._tags.present(plan.tags, plan.patience))

    def _decided(self, plan: Plan, key: str, *, mine: bool) -> None:
        if plan.decided is not None:
            plan.decided(key, mine)

    async def _load(self, flight: Flight, plan: Plan, token: bytes, generations: Generations) -> Copies:
        """Run the loader and store what it brings; without a token nothing can be stored."""
        key = flight.key
        self._decided(plan, key, mine=True)
        self._count.loads += 1
        self._count.refreshes += flight.background
        end_renewal, started = self._renewal(key, token), time.perf_counter()
        try:
            value = await self._places.load(key, plan.load, takes_place=plan.takes_place)
            payload = encoded(key, value)
            value = typed(key, payload, plan.codec, value)
            soft_ms = self.ttl_ms(key, plan.ttl, value)
        except asyncio.CancelledError:
            if token:
                self._background.spawn(self._shelf.release(key, token))
            raise
        except Exception as exc:
            await self._give_up(key, plan, token, exc)
            raise
        finally:
            end_renewal()
        self._complained.discard(key)
        copies = sharer(value, partial(plan.codec.payload, payload))
        if not token:
            self._keep_alone(flight, plan, copies, soft_ms)
            return copies
        hard_ms, delta_s = soft_ms + round(plan.stale_s * 1000), time.perf_counter() - started
        mark = plan.codec.fingerprint_of(value)
        envelope = pack(payload, mark, hard_ms=hard_ms, soft_ms=soft_ms, delta_s=delta_s, tags=generations)
        self._count.bytes_written += len(envelope)
        await self._tags.outlive(plan.tags, hard_ms, plan.patience)
        reply = await self._shelf.store(key, token, envelope, hard_ms, plan.patience)
        if reply is UNANSWERED:
            self._keep_alone(flight, plan, copies, soft_ms)
        return await self._instead(key, plan, copies) if reply == 0 else copies

    def _keep_alone(self, flight: Flight, plan: Plan, copies: Copies, soft_ms: int) -> None:
        """Redis is away: keep the value for a moment, unless the key was set or deleted since the load began."""
        if self._shelf.enabled and not self._shelf.outage.up and self.flights.get(flight.key) is flight:
            self.alone.keep(flight.key, plan.codec, copies, plan.tags, soft_ms / 1000)

    async def _give_up(self, key: str, plan: Plan, token: bytes, exc: Exception) -> None:
        """The load failed: free the key, or keep it quiet for a while, here and in other processes."""
        told, quiet_ms = b"", 0
        if not isinstance(exc, AbsentError):
            self._count.load_errors += 1
            self.failures.add(key, exc, plan.error_ttl_s)
            quiet_ms = round(plan.error_ttl_s * 1000)
            told = tell(exc) if quiet_ms else b""
        if token:
            await self._shelf.release(key, token, told, quiet_ms)

    async def _instead(self, key: str, plan: Plan, copies: Copies) -> Copies:
        """Our value was refused: what has been set or loaded meanwhile is newer. Deleted: ours, to its callers only."""
        self._count.refused_stores += 1
        reading = await self._reader.read(key, plan.codec)
        if reading is None or reading.fresh_left_s <= 0:
            return copies
        return sharer(reading.value, partial(plan.codec.payload, reading.payload))

    def _renewal(self, key: str, token: bytes) -> Callable[[], None]:
        """Keep the lease while the load runs; returns what ends that."""
        if not token:
            return lambda: None
        loop, every_s = asyncio.get_running_loop(), self._lease_ms / 3000
        timers: list[asyncio.TimerHandle] = []

        def renew() -> None:
            self._background.spawn(self._shelf.renew(key, token, self._lease_ms))
            timers[0] = loop.call_later(every_s, renew)

        timers.append(loop.call_later(every_s, renew))
        return lambda: timers[0].cancel()  # noqa: PLW0108 - the timer of that moment, not the first one

    def ttl_ms(self, key: str, ttl: Lifetime | Callable[[Any], Lifetime], value: Any = None) -> int:
        """A fixed time is shortened a little at random, so that what began together does not end together."""
        if callable(ttl):
            return milliseconds(ttl(value), key)
        return max(1, round(milliseconds(ttl, key) * (1 - random.random() * self._jitter)))

    def _complain(self, key: str, exc: Exception) -> None:
        """A refresh in the background has no caller to tell: one line per key until it succeeds."""
        if key not in self._complained and len(self._complained) < 1000:
            self._complained.add(key)
            log.warning("cache %r: refresh of %r failed, the old value is served: %r", self._shelf.prefix, key, exc)

    async def close(self) -> None:
        """Cancel all loads, which release their leases."""
        tasks = list(self._aloft)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def encoded(key: str, value: Any) -> bytes:
    """The value's payload; CacheTypeError names the key."""
    try:
        return encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise CacheTypeError(key, f"{type(value).__name__} cannot be encoded: {exc}") from exc


def typed(key: str, payload: bytes, codec: Codec, value: Any) -> Any:
    """What a later reader will get: the loaded value as the declared type (of Any: lists, dicts and plain values)."""
    try:
        return codec.payload(payload)
    except ValueError as exc:
        raise CacheTypeError(key, f"the loader returned {type(value).__name__}, not {codec.type}: {exc}") from exc


def sharer(value: Any, decode: Callable[[], Any]) -> Copies:
    """Gives each caller the value, or where it can be changed, a copy."""
    return copier(value, decode) or (lambda: value)
