"""
The cache's side of Redis: names of keys, scripts, and a bounded patience with the server.

Every question has a time limit and returns `UNANSWERED` instead of raising, after telling the `Outage`; the cache
decides what that means for its caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Literal

from aegis.errors import RedisError
from aegis.redis._outage import Outage
from aegis.redis._script import Script, load_script
from aegis.redis.client import Argument, Redis


class _Unanswered:
    def __repr__(self) -> str:
        return "UNANSWERED"

    def __bool__(self) -> Literal[False]:
        return False


UNANSWERED: Final[Any] = _Unanswered()
#: A tag's generation outlives the longest load; storing a value prolongs it to the value's own life.
_TAG_LIFE_MS = 3_600_000


class Shelf:
    """Values, leases and tags of one prefix."""

    def __init__(self, redis: Redis, prefix: str, patience_s: float) -> None:
        self.redis, self.prefix, self.patience_s = redis, prefix, patience_s
        self.channel = f"{prefix}:loads"
        self.outage = Outage(redis, patience_s, f"cache {prefix!r}")
        self.last_error: RedisError | None = None
        self._lead, self._store = load_script("cache_lead"), load_script("cache_store")
        self._release, self._renew = load_script("cache_release"), load_script("cache_renew")
        self._set, self._delete = load_script("cache_set"), load_script("cache_delete")
        self._delete_if, self._tags = load_script("cache_delete_if"), load_script("cache_tags")

    @property
    def up(self) -> bool:
        """Whether it makes sense to ask."""
        return self.outage.up and self.redis.enabled

    def value_key(self, key: str) -> str:
        """Where the value lies. The braces keep it and its lease on one node of a cluster."""
        return f"{self.prefix}:cache:{{{key}}}"

    def lease_key(self, key: str) -> str:
        """Where the lease lies."""
        return f"{self.prefix}:lease:{{{key}}}"

    def tag_key(self, tag: str) -> str:
        """Where the generation of a tag lies."""
        return f"{self.prefix}:tag:{tag}"

    async def ask(self, *command: Argument) -> Any:
        """One command's reply, or UNANSWERED."""
        if not self.up:
            return UNANSWERED
        try:
            async with asyncio.timeout(self.patience_s):
                return await self.redis.execute(*command, timeout=self.patience_s)
        except RedisError as exc:
            return self._failed(exc)
        except TimeoutError:
            return self._failed(RedisError(f"no answer within {self.patience_s:g} s"))

    async def ask_all(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """The replies of commands that leave in one write."""
        return list(await asyncio.gather(*(self.ask(*command) for command in commands)))

    async def _run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        if not self.up:
            return UNANSWERED
        try:
            async with asyncio.timeout(self.patience_s):
                reply = await self.redis.run(script, keys, args, timeout=self.patience_s)
        except RedisError as exc:
            return self._failed(exc)
        except TimeoutError:
            return self._failed(RedisError(f"no answer within {self.patience_s:g} s"))
        self.outage.accepted()
        return reply

    def _failed(self, exc: RedisError) -> Any:
        self.last_error = exc
        self.outage.failed(exc)
        return UNANSWERED

    def _tag_keys(self, tags: Sequence[str]) -> list[str]:
        return [self.tag_key(tag) for tag in tags]

    async def read(self, key: str) -> tuple[Any, int]:
        """The stored bytes (None: nothing) and their time to live, ms."""
        value_key = self.value_key(key)
        raw, left_ms = await self.ask_all((("GET", value_key), ("PTTL", value_key)))
        return raw, left_ms if isinstance(left_ms, int) else 0

    async def generations(self, tags: Sequence[str]) -> list[bytes | None]:
        """The present generation of each tag; None where there is none, or no answer."""
        reply = await self.ask("MGET", *self._tag_keys(tags))
        return reply or [None] * len(tags)

    async def lead(self, key: str, token: bytes, lease_ms: int, seen: bytes, tags: Sequence[str]) -> Any:
        """cache_lead.lua"""
        keys = [self.value_key(key), self.lease_key(key), *self._tag_keys(tags)]
        return await self._run(self._lead, keys, (token, lease_ms, seen, _TAG_LIFE_MS))

    async def store(self, key: str, token: bytes, envelope: bytes, ttl_ms: int, tags: Sequence[str]) -> Any:
        """cache_store.lua"""
        keys = [self.value_key(key), self.lease_key(key), *self._tag_keys(tags)]
        return await self._run(self._store, keys, (token, envelope, ttl_ms, self.channel, key))

    async def renew(self, key: str, token: bytes, lease_ms: int) -> Any:
        """cache_renew.lua"""
        return await self._run(self._renew, [self.lease_key(key)], (token, lease_ms))

    async def release(self, key: str, token: bytes, error: bytes = b"", error_ms: int = 0) -> Any:
        """cache_release.lua"""
        return await self._run(self._release, [self.lease_key(key)], (token, error, error_ms, self.channel, key))

    async def set(self, key: str, envelope: bytes, ttl_ms: int, tags: Sequence[str]) -> Any:
        """cache_set.lua"""
        keys = [self.value_key(key), self.lease_key(key), *self._tag_keys(tags)]
        return await self._run(self._set, keys, (envelope, ttl_ms, self.channel, key))

    async def delete(self, key: str) -> Any:
        """cache_delete.lua"""
        return await self._run(self._delete, [self.value_key(key), self.lease_key(key)], (self.channel, key))

    async def delete_if(self, key: str, seen: bytes) -> Any:
        """cache_delete_if.lua"""
        return await self._run(self._delete_if, [self.value_key(key)], (seen,))

    async def tags(self, tags: Sequence[str], new: bytes) -> Any:
        """cache_tags.lua"""
        return await self._run(self._tags, self._tag_keys(tags), (new, _TAG_LIFE_MS))

    async def invalidate(self, tag: str) -> Any:
        """A tag without a generation covers nothing; the next load makes a new one."""
        return await self.ask("UNLINK", self.tag_key(tag))
