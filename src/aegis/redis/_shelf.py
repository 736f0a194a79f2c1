"""
The cache's side of Redis: names of keys, scripts, and a bounded patience with the server.

Every question has a time limit and returns `UNANSWERED` instead of raising, after telling the `Outage`; the cache
decides what that means for its caller. What should have been deleted during an outage is owed, and is deleted before
the server is trusted again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final, Literal

from aegis.errors import RedisError
from aegis.redis._outage import Outage
from aegis.redis._script import Script, load_script
from aegis.redis.client import Argument, Redis

log = logging.getLogger("aegis.redis")


class _Unanswered:
    def __repr__(self) -> str:
        return "UNANSWERED"

    def __bool__(self) -> Literal[False]:
        return False


UNANSWERED: Final[Any] = _Unanswered()
#: A tag's generation outlives the longest load; storing a value prolongs it to the value's own life.
_TAG_LIFE_MS = 3_600_000
_OWED_MAX = 10_000
#: First characters of an announcement: a load has ended; the key was set or deleted, so loads under way are outdated.
ENDED, WITHDRAWN = "+", "-"


class Shelf:
    """Values, leases and tags of one prefix."""

    def __init__(self, redis: Redis, prefix: str, patience_s: float) -> None:
        self.redis, self.prefix, self.patience_s = redis, prefix, patience_s
        self.enabled = redis.enabled
        self.values, self.leases, self.generation_keys = f"{prefix}:cache:", f"{prefix}:lease:", f"{prefix}:tag:"
        self.channel = f"{prefix}:loads"
        self.outage = Outage(f"cache {prefix!r}", redis.config.address, self._make_up_for_what_was_missed)
        self._owed: dict[str, None] = {}
        self._lead, self._store = load_script("cache_lead"), load_script("cache_store")
        self._release, self._renew = load_script("cache_release"), load_script("cache_renew")
        self._set, self._delete = load_script("cache_set"), load_script("cache_delete")
        self._delete_if, self._tags = load_script("cache_delete_if"), load_script("cache_tags")

    def value_key(self, key: str) -> str:
        """Where the value lies. The braces keep it and its lease on one node of a cluster."""
        return f"{self.values}{{{key}}}"

    def lease_key(self, key: str) -> str:
        """Where the lease lies."""
        return f"{self.leases}{{{key}}}"

    def tag_key(self, tag: str) -> str:
        """Where the generation of a tag lies."""
        return self.generation_keys + tag

    # --- asking ---

    async def ask(self, *command: Argument) -> Any:
        """One command's reply, or UNANSWERED."""
        if not self.enabled or not self.outage.up:
            return UNANSWERED
        try:
            return await self.redis.execute(*command, timeout=self.patience_s)
        except RedisError as exc:
            return self.failed(exc)

    async def ask_all(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """The replies of commands that leave in one write; each UNANSWERED when there was none."""
        if not self.enabled or not self.outage.up:
            return [UNANSWERED] * len(commands)
        try:
            replies = await self.redis.pipeline(commands, timeout=self.patience_s, return_errors=True)
        except RedisError as exc:
            return [self.failed(exc)] * len(commands)
        return [self.failed(reply) if isinstance(reply, RedisError) else reply for reply in replies]

    async def _run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        if not self.enabled or not self.outage.up:
            return UNANSWERED
        try:
            return await self.redis.run(script, keys, args, timeout=self.patience_s)
        except RedisError as exc:
            return self.failed(exc)

    async def _run_all(self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]]) -> list[Any]:
        """As `_run`, many times in one write; the source goes first, so that no hash is unknown."""
        if not calls:
            return []
        (keys, args), *others = calls
        first = await self._run(script, keys, args)  # also tells the server the script
        commands = [("EVALSHA", script.sha, len(keys), *keys, *args) for keys, args in others]
        return [first, *(await self.ask_all(commands) if commands else [])]

    def failed(self, exc: RedisError) -> Any:
        """Note it; what the question gives instead of an answer."""
        self.outage.failed(exc)
        return UNANSWERED

    # --- what an outage leaves behind ---

    def owe(self, *redis_keys: str) -> None:
        """Delete these before the server is trusted again."""
        if not self.enabled:
            return
        for key in redis_keys:
            if len(self._owed) >= _OWED_MAX:
                log.error("cache %r: more than %d deletions missed; %s stays", self.prefix, _OWED_MAX, key)
                return
            self._owed[key] = None

    async def _make_up_for_what_was_missed(self) -> None:
        await self.redis.execute("PING", timeout=self.patience_s)
        while self._owed:
            some = list(self._owed)[:500]
            await self.redis.execute("UNLINK", *some, timeout=self.patience_s)
            for key in some:
                self._owed.pop(key, None)

    # --- values ---

    async def get(self, key: str) -> Any:
        """The stored bytes, None where there are none."""
        return await self.ask("GET", self.value_key(key))

    async def ttl_ms(self, key: str) -> int:
        """The time to live, ms (-1: none, -2: gone meanwhile)."""
        left_ms = await self.ask("PTTL", self.value_key(key))
        return left_ms if type(left_ms) is int else -2

    async def get_with_ttl(self, key: str) -> tuple[Any, int]:
        """The stored bytes and their time to live, in one write."""
        value_key = self.value_key(key)
        raw, left_ms = await self.ask_all((("GET", value_key), ("PTTL", value_key)))
        return raw, left_ms if type(left_ms) is int else -2

    async def get_all(self, keys: Sequence[str], *, with_ttl: bool) -> list[tuple[Any, int]]:
        """As `get_with_ttl`, for many keys in one write."""
        names = [self.value_key(key) for key in keys]
        ttls = [("PTTL", name) for name in names] if with_ttl else []
        raws, *lefts = await self.ask_all([("MGET", *names), *ttls])
        lefts = [left if type(left) is int else -2 for left in lefts] if with_ttl else [-2] * len(names)
        return list(zip(raws or [raws] * len(names), lefts, strict=True))

    async def set(self, key: str, envelope: bytes, ttl_ms: int, tags: Sequence[str]) -> Any:
        """cache_set.lua"""
        return (await self.set_all([(key, envelope, ttl_ms)], tags))[0]

    async def set_all(self, values: Sequence[tuple[str, bytes, int]], tags: Sequence[str]) -> list[Any]:
        """cache_set.lua for many keys in one write. What could not be set is deleted instead, now or later."""
        tag_keys = self._tag_keys(tags)
        calls = [
            ((self.value_key(key), self.lease_key(key), *tag_keys), (blob, ms, self.channel, WITHDRAWN + key))
            for key, blob, ms in values
        ]
        replies = await self._run_all(self._set, calls)
        if UNANSWERED not in replies:
            self.outage.accepted()
            return replies
        unset = [key for (key, _, _), reply in zip(values, replies, strict=True) if reply is UNANSWERED]
        await asyncio.gather(*(self.delete(key) for key in unset))  # an old value must not outlive a new one
        return replies

    async def delete(self, key: str) -> Any:
        """cache_delete.lua"""
        names = [self.value_key(key), self.lease_key(key)]
        reply = await self._run(self._delete, names, (self.channel, WITHDRAWN + key))
        if reply is UNANSWERED:
            self.owe(*names)
        return reply

    async def delete_if(self, key: str, seen: bytes) -> Any:
        """cache_delete_if.lua"""
        return await self._run(self._delete_if, [self.value_key(key)], (seen,))

    # --- tags ---

    def _tag_keys(self, tags: Sequence[str]) -> list[str]:
        return [self.tag_key(tag) for tag in tags]

    async def generations(self, tags: Sequence[str]) -> list[bytes | None]:
        """The present generation of each tag; None where there is none, or no answer."""
        return await self.ask("MGET", *self._tag_keys(tags)) or [None] * len(tags)

    async def make_generations(self, tags: Sequence[str], new: bytes) -> Any:
        """cache_tags.lua"""
        return await self._run(self._tags, self._tag_keys(tags), (new, _TAG_LIFE_MS))

    async def invalidate(self, tag: str) -> Any:
        """A tag without a generation covers nothing; the next load makes a new one."""
        reply = await self.ask("UNLINK", self.tag_key(tag))
        if reply is UNANSWERED:
            self.owe(self.tag_key(tag))
        return reply

    # --- leases ---

    async def lead(self, key: str, token: bytes, lease_ms: int, seen: bytes, tags: Sequence[str]) -> Any:
        """cache_lead.lua"""
        keys = [self.value_key(key), self.lease_key(key), *self._tag_keys(tags)]
        return await self._run(self._lead, keys, (token, lease_ms, seen, _TAG_LIFE_MS))

    async def store(self, key: str, token: bytes, envelope: bytes, ttl_ms: int, tags: Sequence[str]) -> Any:
        """cache_store.lua"""
        keys = [self.value_key(key), self.lease_key(key), *self._tag_keys(tags)]
        reply = await self._run(self._store, keys, (token, envelope, ttl_ms, self.channel, ENDED + key))
        if reply is not UNANSWERED:
            self.outage.accepted()
        return reply

    async def renew(self, key: str, token: bytes, lease_ms: int) -> Any:
        """cache_renew.lua"""
        return await self._run(self._renew, [self.lease_key(key)], (token, lease_ms))

    async def release(self, key: str, token: bytes, error: bytes = b"", error_ms: int = 0) -> Any:
        """cache_release.lua"""
        args = (token, error, error_ms, self.channel, ENDED + key)
        return await self._run(self._release, [self.lease_key(key)], args)
