"""
What a cache and all of its namespaces share: the parts, joined, and what each caller's wish means for them.

`Cache` speaks of keys, types and times to live; here they are names, codecs and plans.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal

from aegis.redis.caching.background import Background
from aegis.redis.caching.envelope import TAG_CHARACTERS_MAX, TAGS_MAX, Codec, codec_for, encode
from aegis.redis.caching.loads import AbsentError, Loads, Plan
from aegis.redis.caching.places import Places
from aegis.redis.caching.reader import Reader, Reading, is_early
from aegis.redis.caching.shelf import UNANSWERED, Patience, Shelf
from aegis.redis.caching.stats import TIME_MAX_S, CacheStats, Counters, Lifetime, milliseconds
from aegis.redis.caching.tags import Tags
from aegis.redis.caching.tether import Tether
from aegis.redis.caching.tier import LocalEntry, Tier
from aegis.redis.client import Redis


@dataclass(frozen=True, slots=True)
class Options:
    """What `Cache` was made with; its docstring says what they mean."""

    local_entries: int
    local_bytes: int
    lease_s: float
    load_timeout_s: float
    patience_s: float
    concurrent_loads: int
    on_outage: Literal["miss", "raise"]
    jitter: float
    eagerness: float

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name}={value} must lie between {least:g} and {most:g}")
        if self.on_outage not in {"miss", "raise"}:
            raise ValueError(f"on_outage={self.on_outage!r} is neither 'miss' nor 'raise'")


_BOUNDS = {
    "local_entries": (0, 100_000_000), "local_bytes": (0, 1 << 50), "lease_s": (0.01, 10),
    "load_timeout_s": (0.001, 86_400), "patience_s": (0.001, 10), "concurrent_loads": (1, 1_000_000),
    "jitter": (0, 0.5), "eagerness": (0, 1000),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wish:
    """How a caller wants values to be loaded: the keyword arguments of `get_or_set`."""

    type: Any
    ttl: Lifetime | Callable[[Any], Lifetime]
    stale_s: float
    error_ttl_s: float
    tags: Sequence[str]


class Core:
    """The parts of one cache, and the steps that several of its methods have in common."""

    def __init__(self, redis: Redis, prefix: str, options: Options) -> None:
        self.redis, self.eagerness = redis, options.eagerness
        self._raises = options.on_outage == "raise" and redis.enabled
        self.count, self._background = Counters(), Background()
        self.shelf = Shelf(redis, prefix, options.patience_s)
        self.tier = Tier(options.local_entries, options.local_bytes)
        self.tags = Tags(self.shelf, self.tier, self._background)
        self.reader = Reader(self.shelf, self.tier, self.tags, self.count, options.eagerness)
        self.places = Places(options.concurrent_loads, options.load_timeout_s)
        self.loads = Loads(
            self.shelf, reader=self.reader, tags=self.tags, places=self.places, counters=self.count,
            background=self._background, lease_s=options.lease_s, jitter=options.jitter,
        )  # fmt: skip
        self.tether = Tether(self.shelf, self.tier, self.loads, self._background)
        redis.on_close(self._close)

    async def _close(self) -> None:
        await self.tether.close()
        await self.loads.close()
        await self._background.close()
        await self.shelf.outage.close()

    # --- looking ---

    def serves(self, local: LocalEntry, now: float, stale_s: float) -> bool:
        """Whether a local entry may be given to a caller who takes stale values for `stale_s`."""
        return now < self.tier.trusted_until and now < min(local.expires_at, local.soft_at + stale_s)

    def read(self, name: str, type_: Any, *, aged: bool) -> Awaitable[Reading | None]:
        """From Redis. Not a coroutine itself: on the hot path each one between caller and socket costs."""
        if not self.tether.started:
            self.tether.start()
        return self.reader.read(name, codec_for(type_), aged=aged)

    async def read_all(self, names: list[str], type_: Any) -> dict[str, Reading]:
        """From both tiers, in one round trip; counts the hits."""
        if not names:
            return {}
        if not self.tether.started:
            self.tether.start()
        now, codec = monotonic(), codec_for(type_)
        found: dict[str, Reading] = {}
        if now < self.tier.trusted_until:
            for name in names:
                local = self.tier.entries.get(name)
                if local is not None and local.type == type_ and now < local.fresh_until:
                    local.used = True
                    found[name] = Reading.of_local(local, now)
        self.count.local_hits += len(found)
        readings = await self.reader.read_all([name for name in names if name not in found], codec)
        self.count.redis_hits += sum(each.fresh_left_s > 0 for each in readings.values())
        return found | readings

    def is_due(self, reading: Reading) -> bool:
        """Whether the caller who got this value shall have it loaded anew: it is stale, or soon to be."""
        self.count.stale_serves += reading.fresh_left_s <= 0
        return reading.fresh_left_s <= 0 or is_early(reading.fresh_left_s, reading.delta_s, self.eagerness)

    # --- loading ---

    def plan(self, key: str, space: str, load: Callable[[], Any], wish: Wish, patience: Patience) -> Plan:
        """The wish for one key, checked: a wrong one is refused before anything is asked."""
        named(space, key)
        if not callable(wish.ttl):
            milliseconds(wish.ttl, key)
        for name in ("stale_s", "error_ttl_s"):
            if not 0 <= getattr(wish, name) <= TIME_MAX_S:
                raise ValueError(f"{name}={getattr(wish, name)} of {key!r} is not between 0 and {TIME_MAX_S} seconds")
        tags = tags_named(space, wish.tags)
        return Plan(codec_for(wish.type), load, wish.ttl, patience, wish.stale_s, wish.error_ttl_s, tags)

    async def load(self, name: str, plan: Plan, reading: Reading | None) -> Any:
        """The value from the load that is under way, or from one that we begin."""
        if name not in self.loads.flights:
            kept, error = self.loads.alone.get(name, plan.codec), self.loads.failures.get(name)
            if plan.decided is not None and (kept is not None or error is not None):
                plan.decided(name, False)
            if kept is not None:
                return kept()
            if error is not None:
                raise error
        flight = self.loads.board(name, plan, reading.identity if reading is not None else b"")
        value = await flight.wait()
        if flight.codec is plan.codec:
            return value
        return await self._retyped(name, plan, value)

    async def load_single(self, name: str, plan: Plan, reading: Reading | None) -> Any:
        """As `load`; who joins a batch whose loader knows nothing of this key loads it by his own."""
        while True:
            try:
                return await self.load(name, plan, reading)
            except AbsentError:
                continue

    async def _retyped(self, name: str, plan: Plan, value: Any) -> Any:
        """Another caller's type was loaded: ours may be different."""
        codec: Codec = plan.codec
        try:
            return codec.payload(encode(value))
        except ValueError:
            return await self.loads.board(name, plan).wait()

    # --- forgetting ---

    def forget(self, name: str) -> None:
        """A key is set or deleted here: neither a copy nor a load that began before may serve it."""
        self.loads.forget(name)
        self.tier.drop(name)

    # --- what happened ---

    def answered(self, reply: Any) -> None:
        """Raise for those who want to know that Redis did not answer."""
        if reply is UNANSWERED and self._raises:
            raise self.shelf.outage.error()

    def answering(self) -> None:
        """As `answered`, for a question whose answer may have been "nothing"."""
        if not self.shelf.outage.up:
            self.answered(UNANSWERED)

    @property
    def state(self) -> str:
        """`up`, `down` or `disabled`."""
        if not self.redis.enabled:
            return "disabled"
        return "up" if self.shelf.outage.up else "down"

    def stats(self) -> CacheStats:
        """The counts, frozen."""
        count, tier = self.count, self.tier
        return CacheStats(
            local_hits=count.local_hits, redis_hits=count.redis_hits, misses=count.misses, unreadable=count.unreadable,
            loads=count.loads, load_errors=count.load_errors, joined=count.joined, waited=count.waited,
            stale_serves=count.stale_serves, refreshes=count.refreshes, refused_stores=count.refused_stores,
            errors=self.shelf.outage.failures, bytes_read=count.bytes_read, bytes_written=count.bytes_written,
            local_entries=len(tier.entries), local_bytes=tier.bytes, evictions=tier.evictions,
            invalidations=tier.invalidations, state=self.state, local_trusted=tier.trusted,
        )  # fmt: skip


def named(space: str, key: str) -> str:
    """The name of a key or tag within its namespace."""
    if not isinstance(key, str):
        raise TypeError(f"cache key or tag {key!r} is not text")
    if not key or key[0] == "}":
        raise ValueError(f"cache key or tag {key!r} must not be empty or begin with a closing brace")
    return space + key


def tags_named(space: str, tags: Sequence[str]) -> tuple[str, ...]:
    """The names of tags, each once."""
    if isinstance(tags, str):
        raise TypeError(f"tags={tags!r} is one text; a sequence of tags is meant: ({tags!r},)")
    names = tuple(dict.fromkeys(named(space, tag) for tag in tags))
    if len(names) > TAGS_MAX or any(len(name) > TAG_CHARACTERS_MAX for name in names):
        raise ValueError(
            f"{len(names)} tags: a value may carry {TAGS_MAX}, each of at most {TAG_CHARACTERS_MAX} characters"
        )
    return names
