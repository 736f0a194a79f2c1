"""
Many keys at once: both tiers in one round trip, one load for what nobody has, one write.

A batch loader is called once, when each missing key is known to be this process's to load, or not. Each key keeps a
flight of its own, so that single callers and overlapping batches of all processes meet on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Any

import msgspec

from aegis.redis.caching.core import Core, Wish, named, tags_named
from aegis.redis.caching.envelope import pack
from aegis.redis.caching.flight import fresh
from aegis.redis.caching.loads import AbsentError, Plan, encoded
from aegis.redis.caching.places import Places, abandon, call
from aegis.redis.caching.schema import fingerprint_of_value
from aegis.redis.caching.shelf import UNANSWERED
from aegis.redis.caching.stats import Lifetime, milliseconds


async def get_many(core: Core, space: str, keys: Iterable[str], type_: Any) -> dict[str, Any]:
    """The fresh values that are there, by key, in the order in which they were asked for."""
    names = _named_all(space, keys)
    readings = await core.read_all(list(names), type_)
    fresh_ones = {key: readings[name].value for name, key in names.items() if _is_fresh(readings.get(name))}
    core.count.misses += len(names) - len(fresh_ones)
    if len(readings) < len(names):
        core.answering()
    return fresh_ones


def _named_all(space: str, keys: Iterable[str]) -> dict[str, str]:
    """Each key by its name."""
    if isinstance(keys, str):
        raise TypeError(f"keys={keys!r} is one text; several keys are meant: [{keys!r}]")
    return {named(space, key): key for key in keys}


def _is_fresh(reading: Any) -> bool:
    return reading is not None and reading.fresh_left_s > 0


async def set_all(
    core: Core, space: str, values: Mapping[str, Any], ttl: Lifetime, tags: Sequence[str], *, jitter: bool
) -> None:
    """Encode all before the first is stored, so that a value that cannot be leaves nothing half done."""
    items = []
    for key, value in values.items():
        name = named(space, key)
        ttl_ms = core.loads.ttl_ms(name, ttl) if jitter else milliseconds(ttl, name)
        items.append((name, encoded(name, value), fingerprint_of_value(value), ttl_ms))
    names_of_tags = tags_named(space, tags)
    if not items:
        return
    for name, *_ in items:
        core.forget(name)
    patience = core.shelf.patience(keys=len(items))
    generations = await core.tags.present(names_of_tags, patience)
    if generations is None:
        await asyncio.gather(*(core.shelf.delete(name) for name, *_ in items))
        core.answered(UNANSWERED)
        return
    await core.tags.outlive(names_of_tags, max(ttl_ms for *_, ttl_ms in items), patience)
    envelopes = [
        (name, pack(payload, mark, hard_ms=ttl_ms, soft_ms=ttl_ms, tags=generations), ttl_ms)
        for name, payload, mark, ttl_ms in items
    ]
    core.count.bytes_written += sum(len(envelope) for _, envelope, _ in envelopes)
    replies = await core.shelf.set_all(envelopes, patience)
    for name, *_ in items:
        core.tier.drop(name)  # what was read between our question and its answer
    for reply in replies:
        core.answered(reply)


async def get_or_set_many(
    core: Core, space: str, keys: Iterable[str], load_many: Callable[[list[str]], Any], wish: Wish
) -> dict[str, Any]:
    """What `Cache.get_or_set_many` says."""
    names, asked_at = _named_all(space, keys), monotonic()
    readings = await core.read_all(list(names), wish.type)
    found = {name: each for name, each in readings.items() if each.fresh_left_s > -wish.stale_s}
    missing = [name for name in names if name not in found]
    spent_s = monotonic() - asked_at

    def plans(wanted: list[str]) -> Iterator[tuple[str, Plan]]:
        batch = Batch(wanted, partial(_load_named, load_many, names), core.places)
        for name in wanted:
            patience = core.shelf.patience(keys=len(names), spent_s=spent_s)
            plan = core.plan(names[name], space, partial(batch.load, name), wish, patience)
            yield name, msgspec.structs.replace(plan, decided=batch.decided, takes_place=False)

    for name, plan in plans([name for name, each in found.items() if core.is_due(each)]):
        core.loads.refresh(name, plan, found[name].identity)
    core.count.misses += len(missing)
    outcomes = await asyncio.gather(
        *(core.load(name, plan, readings.get(name)) for name, plan in plans(missing)), return_exceptions=True
    )
    values = {name: each.value for name, each in found.items()}
    for name, outcome in zip(missing, outcomes, strict=True):
        if isinstance(outcome, AbsentError):
            continue
        if isinstance(outcome, BaseException):
            raise outcome
        values[name] = outcome
    return {key: values[name] for name, key in names.items() if name in values}


async def _load_named(load_many: Callable[[list[str]], Any], names: Mapping[str, str], asked: list[str]) -> Any:
    """The batch loader speaks of keys, the cache of names with their namespace."""
    loaded = await call(partial(load_many, [names[name] for name in asked]))
    if not isinstance(loaded, Mapping):
        raise TypeError(f"load_many returned {type(loaded).__name__}, not a mapping of keys to values")
    return {name: loaded[names[name]] for name in asked if names[name] in loaded}


class Batch:
    """
    Collects what this process has to load of `keys`, then calls `load_many` once; it gives a mapping.

    Keys that others are loading are waited for by their flights; should such a load fail and its key fall to us after
    all, it is loaded by a call of its own.
    """

    def __init__(self, keys: list[str], load_many: Callable[[list[str]], Any], places: Places) -> None:
        self._load_many, self._places = load_many, places
        self._undecided = set(keys)
        self._asked: dict[str, asyncio.Future[Any]] = {}

    def decided(self, key: str, mine: bool) -> None:
        """Whether this process loads the key; called once the lease was asked for."""
        if not mine and key in self._undecided:
            self._undecided.discard(key)
            self._go_if_complete()

    async def load(self, key: str) -> Any:
        """The loader of one flight: its part of the common call."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[key] = future
        self._undecided.discard(key)
        self._go_if_complete()
        return await future

    def _go_if_complete(self) -> None:
        if self._undecided or not self._asked:
            return
        asked, self._asked = self._asked, {}
        task = asyncio.ensure_future(self._places.take(partial(self._load_many, list(asked))))
        task.add_done_callback(partial(self._share_out, asked))
        for future in asked.values():
            future.add_done_callback(partial(self._leave, asked, task))

    @staticmethod
    def _leave(asked: dict[str, asyncio.Future[Any]], task: asyncio.Future[Any], _: asyncio.Future[Any]) -> None:
        """When nobody waits for any of the keys, nobody needs the loader."""
        if not task.done() and all(future.done() for future in asked.values()):
            abandon(task)

    @staticmethod
    def _share_out(asked: dict[str, asyncio.Future[Any]], task: asyncio.Future[Any]) -> None:
        error: BaseException | None = asyncio.CancelledError() if task.cancelled() else task.exception()
        for key, future in asked.items():
            if future.done():
                continue
            if isinstance(error, Exception):
                future.set_exception(fresh(error))
            elif error is not None:
                future.cancel()
            elif key in task.result():
                future.set_result(task.result()[key])
            else:
                future.set_exception(AbsentError(key))
