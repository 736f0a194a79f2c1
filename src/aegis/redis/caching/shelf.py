"""
The cache's side of Redis: names of keys, scripts, and a bounded patience with the server.

Every question has a time limit and returns `UNANSWERED` instead of raising, after telling the `Outage`; the cache
decides what that means for its caller. What should have been deleted during an outage is owed, and is deleted before
the server is trusted again.

Every question is about one key, or about a value and its lease, which share a hash tag: many are asked by many commands
in one write, so that on a cluster each finds its own node.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, Final, Literal

from aegis.errors import RedisError, ServerReplyError
from aegis.redis._script import Script, load_script
from aegis.redis.client import Argument, Redis
from aegis.redis.connection.outage import Outage

log = logging.getLogger("aegis.redis")


class _Unanswered:
    def __repr__(self) -> str:
        return "UNANSWERED"

    def __bool__(self) -> Literal[False]:
        return False


UNANSWERED: Final[Any] = _Unanswered()
_OWED_MAX = 10_000
#: Questions of the longest call, one after the other: look, ask for the lease, store.
_QUESTIONS_PER_CALL = 3
#: What one more key of a batch may take, on a slow machine.
_MORE_PER_KEY_S = 0.0005
#: Less than that is not worth a question.
_PATIENCE_MIN_S = 0.01
#: First characters of an announcement: a load has ended; the key was set or deleted, so loads under way are outdated.
ENDED, WITHDRAWN = "+", "-"


class Patience:
    """How long one call may wait for Redis, all its questions together."""

    __slots__ = ("_all_s", "left_s")

    def __init__(self, all_s: float, spent_s: float = 0.0) -> None:
        self._all_s = self.left_s = all_s
        self.spend(spent_s)

    def spend(self, seconds: float) -> None:
        """So long it took until there was an answer, or none."""
        self.left_s = max(self.left_s - seconds, _PATIENCE_MIN_S)

    def renew(self) -> None:
        """The server has just been heard."""
        self.left_s = self._all_s


class Shelf:
    """Values, leases and tags of one prefix."""

    def __init__(self, redis: Redis, prefix: str, patience_s: float) -> None:
        self.redis, self.prefix, self.patience_s = redis, prefix, patience_s
        self.enabled = redis.enabled
        self.values, self.leases, self.generation_keys = f"{prefix}:cache:", f"{prefix}:lease:", f"{prefix}:tag:"
        self.channel, self.sharded = f"{prefix}:loads", redis.sharded
        self._publish = "SPUBLISH" if self.sharded else "PUBLISH"
        self.outage = Outage(f"cache {prefix!r}", redis.config.address, self._catch_up)
        self._owed: dict[str, None] = {}
        self._doubtful: dict[str, bytes] = {}  # key -> token of a lease that we may still hold there
        self._lead, self._store = load_script("cache_lead"), load_script("cache_store")
        self._release, self._renew = load_script("cache_release"), load_script("cache_renew")
        self._set, self._delete = load_script("cache_set"), load_script("cache_delete")
        self._delete_if, self._tag = load_script("cache_delete_if"), load_script("cache_tag")

    def patience(self, *, keys: int = 1, spent_s: float = 0.0) -> Patience:
        """That of one call about so many keys."""
        return Patience(self.patience_s + (keys - 1) * _MORE_PER_KEY_S, spent_s)

    def value_key(self, key: str) -> str:
        """Where the value lies. The braces keep it and its lease on one node of a cluster."""
        return f"{self.values}{{{key}}}"

    def lease_key(self, key: str) -> str:
        """Where the lease lies."""
        return f"{self.leases}{{{key}}}"

    def ends_channel(self, key: str) -> str:
        """Where the end of a load is announced; on a cluster on the key's own node, to those who wait for it."""
        return f"{self.channel}:{{{key}}}" if self.sharded else self.channel

    def tag_key(self, tag: str) -> str:
        """Where the generation of a tag lies."""
        return self.generation_keys + tag

    # --- asking ---

    async def ask(self, *command: Argument, patience: Patience | None = None) -> Any:
        """One command's reply, or UNANSWERED."""
        return await self._answer(lambda timeout: self.redis.execute(*command, timeout=timeout), patience)

    async def ask_all(self, commands: Sequence[Sequence[Argument]], patience: Patience) -> list[Any]:
        """The replies of commands that leave in one write; each UNANSWERED when there was none."""
        replies = await self._replies(commands, patience)
        return [self.failed(reply) if isinstance(reply, RedisError) else reply for reply in replies]

    async def _replies(self, commands: Sequence[Sequence[Argument]], patience: Patience) -> list[Any]:
        replies = await self._answer(
            lambda timeout: self.redis.pipeline(commands, timeout=timeout, return_errors=True), patience
        )
        return [UNANSWERED] * len(commands) if replies is UNANSWERED else list(replies)

    async def _run(
        self, script: Script, keys: Sequence[str], args: Sequence[Argument], patience: Patience | None
    ) -> Any:
        return await self._answer(lambda timeout: self.redis.run(script, keys, args, timeout=timeout), patience)

    async def _run_all(
        self, script: Script, calls: Sequence[tuple[Sequence[str], Sequence[Argument]]], patience: Patience
    ) -> list[Any]:
        """As `_run`, many times in one write; where the server does not know the script, once more with its source."""
        commands = [("EVALSHA", script.sha, len(keys), *keys, *args) for keys, args in calls]
        replies = await self._replies(commands, patience)
        unknown = [at for at, reply in enumerate(replies) if getattr(reply, "code", "") == "NOSCRIPT"]
        if unknown:
            again = await self._replies([("EVAL", script.source, *commands[at][2:]) for at in unknown], patience)
            for at, reply in zip(unknown, again, strict=True):
                replies[at] = reply
        return [self.failed(reply) if isinstance(reply, RedisError) else reply for reply in replies]

    async def _answer(self, question: Callable[[float], Awaitable[Any]], patience: Patience | None) -> Any:
        if not self.enabled or not self.outage.up:
            return UNANSWERED
        if patience is None:
            patience = self.patience()
        asked_at = monotonic()
        try:
            return await question(patience.left_s)
        except RedisError as exc:
            return self.failed(exc)
        finally:
            patience.spend(monotonic() - asked_at)

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

    async def _catch_up(self) -> None:
        """Whether a whole call fits into the patience again; then pay what is owed."""
        patience = self.patience()
        for _ in range(_QUESTIONS_PER_CALL):
            asked_at = monotonic()
            await self._ask_every_server(patience.left_s)
            patience.spend(monotonic() - asked_at)
        for key, token in list(self._doubtful.items()):
            await self.redis.run(self._release, *self._releasing(key, token), timeout=self.patience_s)
            self._doubtful.pop(key, None)
        while self._owed:
            some = list(self._owed)[:500]
            await self.redis.pipeline([("UNLINK", key) for key in some], timeout=self.patience(keys=len(some)).left_s)
            for key in some:
                self._owed.pop(key, None)

    async def _ask_every_server(self, timeout_s: float) -> None:
        """On a cluster each primary: were any of them enough, caller after caller would find the one that hangs."""
        try:
            await self.redis.execute("DBSIZE" if self.redis.sharded else "PING", timeout=timeout_s)
        except ServerReplyError as exc:
            if exc.code != "NOPERM":  # a refusal is an answer, too
                raise

    # --- values ---

    async def ttl_ms(self, key: str, patience: Patience) -> int:
        """The time to live, ms (-1: none, -2: gone meanwhile)."""
        return _ms(await self.ask("PTTL", self.value_key(key), patience=patience))

    async def get_all(self, keys: Sequence[str], patience: Patience) -> list[tuple[Any, int]]:
        """For each key the stored bytes, None where there are none, and their time to live, in one write."""
        names = [self.value_key(key) for key in keys]
        commands = [(command, name) for name in names for command in ("GET", "PTTL")]
        replies = await self.ask_all(commands, patience)
        return [(raw, _ms(left)) for raw, left in zip(replies[::2], replies[1::2], strict=True)]

    async def set_all(self, values: Sequence[tuple[str, bytes, int]], patience: Patience) -> list[Any]:
        """cache_set.lua for each key, in one write. What could not be set is deleted instead, now or later."""
        calls = [
            ((self.value_key(key), self.lease_key(key)), (blob, ms, self.channel, WITHDRAWN + key))
            for key, blob, ms in values
        ]
        replies = await self._run_all(self._set, calls, patience)
        if UNANSWERED not in replies:
            self.outage.accepted()
            return replies
        unset = [key for (key, _, _), reply in zip(values, replies, strict=True) if reply is UNANSWERED]
        await asyncio.gather(*(self.delete(key) for key in unset))  # an old value must not outlive a new one
        return replies

    async def delete(self, key: str) -> Any:
        """cache_delete.lua"""
        names = [self.value_key(key), self.lease_key(key)]
        reply = await self._run(self._delete, names, (self.channel, WITHDRAWN + key), None)
        if reply is UNANSWERED:
            self.owe(*names)
        return reply

    async def delete_if(self, key: str, seen: bytes) -> Any:
        """cache_delete_if.lua"""
        return await self._run(self._delete_if, [self.value_key(key)], (seen,), None)

    # --- tags ---

    async def generations(self, tags: Sequence[str], patience: Patience) -> list[bytes | None]:
        """The present generation of each tag; None where there is none, or no answer."""
        replies = await self.ask_all([("GET", self.tag_key(tag)) for tag in tags], patience)
        return [reply or None for reply in replies]

    async def generation(self, tag: str, new: bytes, least_ms: int, patience: Patience) -> Any:
        """cache_tag.lua"""
        return await self._run(self._tag, [self.tag_key(tag)], (new, least_ms), patience)

    async def invalidate(self, tag: str) -> Any:
        """A tag without a generation covers nothing; the next load makes a new one."""
        reply = await self.ask("UNLINK", self.tag_key(tag))
        if reply is UNANSWERED:
            self.owe(self.tag_key(tag))
        return reply

    # --- leases ---

    async def lead(self, key: str, token: bytes, lease_ms: int, seen: bytes, patience: Patience) -> Any:
        """cache_lead.lua"""
        was_up = self.outage.up
        keys = [self.value_key(key), self.lease_key(key)]
        reply = await self._run(self._lead, keys, (token, lease_ms, seen), patience)
        if was_up:
            self._doubt(key, token, reply)
        return reply

    async def leases_stand(self, keys: Sequence[str], patience: Patience) -> list[Any]:
        """For each key whether it is being loaded now, or UNANSWERED; after a load that failed it is not."""
        states = await self.ask_all([("GETRANGE", self.lease_key(key), 0, 0) for key in keys], patience)
        return [state if state is UNANSWERED else state in {b"0", b"1"} for state in states]

    async def store(self, key: str, token: bytes, envelope: bytes, ttl_ms: int, patience: Patience) -> Any:
        """cache_store.lua"""
        keys = [self.value_key(key), self.lease_key(key), self.ends_channel(key)]
        reply = await self._run(self._store, keys, (token, envelope, ttl_ms, self._publish, ENDED + key), patience)
        if reply is not UNANSWERED:
            self.outage.accepted()
        self._doubt(key, token, reply)
        return reply

    async def renew(self, key: str, token: bytes, lease_ms: int) -> Any:
        """cache_renew.lua"""
        return await self._run(self._renew, [self.lease_key(key)], (token, lease_ms), None)

    async def release(self, key: str, token: bytes, error: bytes = b"", error_ms: int = 0) -> Any:
        """cache_release.lua"""
        reply = await self._run(self._release, *self._releasing(key, token, error, error_ms), None)
        self._doubt(key, token, reply)
        return reply

    def _releasing(
        self, key: str, token: bytes, error: bytes = b"", error_ms: int = 0
    ) -> tuple[Sequence[str], Sequence[Argument]]:
        keys = [self.lease_key(key), self.ends_channel(key)]
        return keys, (token, error, error_ms, self._publish, ENDED + key)

    def _doubt(self, key: str, token: bytes, reply: Any) -> None:
        """Without an answer the lease may be ours still: give it back before others wait for us in vain."""
        if reply is UNANSWERED and self.enabled and not self.outage.up and len(self._doubtful) < _OWED_MAX:
            self._doubtful[key] = token


def _ms(reply: Any) -> int:
    """The reply of PTTL; where there was none, as for a key that is gone."""
    return reply if type(reply) is int else -2
