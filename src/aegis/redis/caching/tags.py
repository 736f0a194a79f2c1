"""
Tags by generation: a value carries the name of each of its tags' present generation, and is void without it.

To invalidate is to forget the generation: one command, however many values carry the tag. What was being loaded at that
moment carries the old name and is void as well. No clock is asked (those of two hosts differ), and each key is asked
for by itself, because on a cluster a tag and what carries it lie on different nodes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from aegis.redis.caching.background import Background
from aegis.redis.caching.envelope import Entry
from aegis.redis.caching.shelf import UNANSWERED, Patience, Shelf
from aegis.redis.caching.tier import Tier

Generations = tuple[tuple[str, bytes], ...]
#: A generation outlives the longest load; storing a value prolongs it to the value's own life.
_LIFE_MS = 3_600_000


class Tags:
    """The generations of one cache's tags."""

    def __init__(self, shelf: Shelf, tier: Tier, background: Background) -> None:
        self._shelf, self._tier, self._background = shelf, tier, background
        self._asked: dict[str, asyncio.Task[bytes]] = {}

    async def present(self, tags: Sequence[str], patience: Patience) -> Generations | None:
        """The present generations, made where there are none; None: Redis did not answer."""
        if not tags:
            return ()
        asked = [self._asked.get(tag) or self._ask(tag, patience) for tag in tags]
        generations = await asyncio.gather(*map(asyncio.shield, asked))
        return None if UNANSWERED in generations else tuple(zip(tags, generations, strict=True))

    def _ask(self, tag: str, patience: Patience) -> asyncio.Task[bytes]:
        """One question for all who need the answer at the same time, such as the values of one batch."""
        new = os.urandom(12).hex().encode()
        question = self._shelf.generation(tag, new, _LIFE_MS, Patience(patience.left_s))
        task = self._asked[tag] = self._background.spawn(question)
        task.add_done_callback(lambda _: self._asked.pop(tag))
        return task

    async def outlive(self, tags: Sequence[str], ttl_ms: int, patience: Patience) -> None:
        """Keep the generations at least as long as what is about to be stored with them."""
        if tags and ttl_ms > _LIFE_MS // 2:
            left_s = patience.left_s
            await asyncio.gather(*(self._shelf.generation(tag, b"", ttl_ms, Patience(left_s)) for tag in tags))

    async def hold(self, entries: Sequence[Entry], patience: Patience) -> list[bool]:
        """For each entry, whether none of its tags was invalidated since; without an answer it cannot be trusted."""
        present: dict[str, bytes | None] = {}
        for entry in entries:
            for tag, _ in entry.tags:
                if tag not in present:
                    present[tag] = self._tier.generation(tag)
        unknown = [tag for tag, generation in present.items() if generation is None]
        if unknown:
            present.update(await self._look_up(unknown, patience))
        return [all(present[tag] == generation for tag, generation in entry.tags) for entry in entries]

    async def _look_up(self, tags: Sequence[str], patience: Patience) -> dict[str, bytes | None]:
        """Ask for generations, and keep in the tier what does not change while the answer is on its way."""
        tickets = [self._tier.begin(tag, tag=True) for tag in tags]
        try:
            found = dict(zip(tags, await self._shelf.generations(tags, patience), strict=True))
            for ticket, (tag, generation) in zip(tickets, found.items(), strict=True):
                if generation and ticket is not None and ticket.valid:
                    self._tier.keep_generation(tag, generation)
        finally:
            for tag, ticket in zip(tags, tickets, strict=True):
                self._tier.end(tag, ticket, tag=True)
        return found

    def known(self, entry: Entry) -> bool:
        """Whether this process knows that all of an entry's generations are the present ones."""
        return all(self._tier.generation(tag) == generation for tag, generation in entry.tags)
