"""
One limit and key on the server: its keys, its numbers, its scripts, and what they answer.

It knows nobody who waits; that is the dispatcher's business. The arithmetic stands in `scripts/limit_rule.lua`.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aegis.errors import RateLimitLayoutError, RedisError, ServerLostError, ServerReplyError
from aegis.redis._script import Script, load_script
from aegis.redis.client import Redis
from aegis.redis.connection.link import pack
from aegis.redis.connection.shared import Argument
from aegis.redis.connection.waiters import Waiter
from aegis.redis.limiting.clock import ServerClock
from aegis.redis.limiting.counts import Counts
from aegis.redis.limiting.limit import Lane, RateLimit, Usage
from aegis.redis.limiting.server import Server, ServerWatch

_TAKE = load_script("limit_rule", "limit_queue", "limit_take", "limit_save")
_TURN = load_script("limit_rule", "limit_queue", "limit_turn", "limit_save")
_RETURN = load_script("limit_rule", "limit_queue", "limit_return", "limit_save")
_HOLD = load_script("limit_rule", "limit_hold", "limit_save")
_PEEK = load_script("limit_rule", "limit_peek")
SERVER_CLOCK = -1
_PACKED_MAX = 256


class Run(NamedTuple):
    """Callers next to each other who ask for the same."""

    callers: int
    cost: int
    patience_us: int  #: -1: any


class LaneAsk(NamedTuple):
    """What this process waits for in one lane; `runs` describe the head of its queue."""

    lane: Lane
    permits: int
    runs: Sequence[Run]


class Grant(NamedTuple):
    """Permits that this process may use when they are due."""

    lane: Lane
    due_us: int
    permits: int


class Told(NamedTuple):
    """What one lane was told: how much it still waits for, when to come back, when that could be due at best."""

    lane: Lane
    permits: int
    back_us: int
    first_us: int
    last_us: int


class Refusal(NamedTuple):
    """A run that cannot be met in time, and when it could be."""

    lane: Lane
    run: int
    wait_us: int


class Turn(NamedTuple):
    """The answer to one question of a dispatcher. Moments are the server's, in µs."""

    now_us: int
    skew_us: int
    held_until_us: int
    grants: list[Grant]
    told: list[Told]
    refused: list[Refusal]


class Took(NamedTuple):
    """The answer to one run of `allow`: the first `served` callers were."""

    served: int
    left: int
    retry_us: int


class Gate:
    """Asks the server about one limit and key, in the name of `me`."""

    def __init__(
        self,
        redis: Redis,
        names: dict[int, str],
        limit: RateLimit,
        name: str,
        me: str,
        *,
        counts: Counts,
        exact: bool = True,
    ) -> None:
        self._redis, self._counts = redis, counts
        self._watch = ServerWatch(redis, name, names, curious=exact)
        self.limit, self.me, self.clock = limit, me, ServerClock()
        self.keys = (f"{name}:ring", f"{name}:state", f"{name}:turns")
        self.channel = f"{name}:bell"
        self._publish = "SPUBLISH" if redis.sharded else "PUBLISH"  # sharded: on the limit's own node
        self.now_us = SERVER_CLOCK  #: tests feed another clock
        self.windows_us = tuple(micros(rate.per + limit.pad) for rate in limit.rates)
        self._horizons_us = {lane: micros(limit.horizon_s(lane)) for lane in Lane}
        pace_us = micros(limit.pace.per + limit.pad)
        self._pause_us = min(max(self.windows_us), micros(limit.hold_max)) + self._horizons_us[Lane.URGENT]
        self._packed: dict[tuple[tuple[int, int], ...], bytes] = {}  # commands of `take_now`, by runs
        self._packed_for: tuple[Argument, ...] = ()
        pairs: list[int] = []
        for rate, window_us in zip(limit.rates, self.windows_us, strict=True):
            pairs += (rate.limit, window_us)
        self._numbers: tuple[int, ...] = (self._pause_us, limit.pace.limit, pace_us, len(limit.rates), *pairs)

    @property
    def address(self) -> str:
        """Of the server, for messages."""
        return self._redis.config.address

    async def take(self, runs: Sequence[tuple[int, int]], timeout: float | None = None) -> list[Took]:
        """Take for callers who do not wait; `runs` are how many, and what each of them asks for."""
        reply = await self._run(_TAKE, "", [number for run in runs for number in run], timeout)
        return took_of(runs, reply)

    def before_write(self, call: Callable[[], None]) -> bool:
        """Call it when what this turn of the loop has to say is written; False when there is no connection."""
        return self._redis.before_write(call)

    def take_now(self, runs: tuple[tuple[int, int], ...], waiter: Waiter) -> bool:
        """As `take`, the short way: `waiter` gets the raw reply. False: not possible now, use `take`."""
        server = self._watch.known
        if server.connection != self._redis.connection_for(self.keys[0]):
            return False
        head = (self.now_us, server.name, self._moved(server), "")
        if head != self._packed_for or len(self._packed) > _PACKED_MAX:
            self._packed_for = head
            self._packed.clear()
        packed = self._packed.get(runs)
        if packed is None:
            args: list[Argument] = ["EVALSHA", _TAKE.sha, len(self.keys), *self.keys, *head, *self._numbers]
            for run in runs:
                args += run
            packed = self._packed[runs] = pack(tuple(args))
        if not self._redis.begin(packed, waiter):
            return False
        self._counts.server_calls += 1
        return True

    async def turn(self, asks: Sequence[LaneAsk], timeout: float | None = None) -> Turn:
        """Say what this process waits for, and hear what it gets; it is not waiting any more in lanes not named."""
        args: list[Argument] = [self._horizons_us[Lane.URGENT]]
        for ask in asks:
            args += [int(ask.lane), self._horizons_us[ask.lane], ask.permits, len(ask.runs)]
            args += [number for run in ask.runs for number in run]
        await self._watch.ask()  # so that it does not count as part of the round trip
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        now_us, skew_us, held_us, grants, told, refused = await self._run(_TURN, self.me, args, timeout)
        self.clock.learn(now_us, skew_us, asked_at, loop.time())
        return Turn(
            now_us,
            skew_us,
            now_us + held_us,
            [Grant(Lane(lane), now_us + wait_us, permits) for lane, wait_us, permits in _rows(grants, 3)],
            [
                Told(Lane(lane), permits, now_us + back, now_us + first, now_us + last)
                for lane, permits, back, first, last in _rows(told, 5)
            ],
            [Refusal(Lane(lane), number - 1, wait_us) for lane, number, wait_us in _rows(refused, 3)],
        )

    async def give_back(self, grants: Sequence[Grant], leaving: Sequence[Lane], timeout: float | None = None) -> int:
        """Give back what is not due yet, leave these lanes; who is next in line is told. Returns permits taken back."""
        args: list[Argument] = [self._publish, len(leaving), *(int(lane) for lane in leaving)]
        args += [number for grant in grants for number in (int(grant.lane), grant.due_us, grant.permits)]
        taken: int = await self._run(_RETURN, self.me, args, timeout, more_keys=(self.channel,))
        return taken

    async def hold(self, seconds: float) -> float:
        """Pause everybody; returns the seconds until the hold ends."""
        left_us: int = await self._run(_HOLD, "", [micros(seconds), self._publish], more_keys=(self.channel,))
        return left_us / 1e6

    async def peek(self) -> Usage:
        """How the limit stands."""
        used, reserved, next_us, held_us = await self._run(_PEEK, "", ())
        left = max(0, self.limit.rates[0].limit - used - reserved)
        return Usage(used, left, next_us / 1e6, held_us / 1e6)

    async def reset(self) -> None:
        """Forget everything; everybody who waits asks anew."""
        self._counts.server_calls += 1
        await self._redis.pipeline([("DEL", *self.keys), (self._publish, self.channel, "reset")])

    async def _run(
        self,
        script: Script,
        me: str,
        args: Sequence[Argument],
        timeout: float | None = None,
        *,
        more_keys: tuple[str, ...] = (),
    ) -> Any:
        server = await self._watch.ask()
        self._counts.server_calls += 1
        head: tuple[Argument, ...] = (self.now_us, server.name, self._moved(server), me, *self._numbers)
        try:
            reply = await self._redis.run(script, (*self.keys, *more_keys), [*head, *args], timeout=timeout)
        except ServerReplyError as exc:
            raise self._refusal(exc) from None
        if self._redis.connection_for(self.keys[0]) != server.connection:
            # Given before the connection was lost, sent over the next one: perhaps to a server that is not the named.
            raise ServerLostError(self._redis.config.address, "EVALSHA", "answered over another connection")
        return reply

    def _refusal(self, exc: ServerReplyError) -> RedisError:
        """What the scripts' own refusal means; any other stays what it is."""
        if exc.code != "LAYOUT":
            return exc
        _, found, _, _, known = exc.message.split()
        return RateLimitLayoutError(self.limit.name, int(found), int(known))

    def _moved(self, server: Server) -> int:
        """1 while a server that lost its memory may owe a pause for what its predecessor granted."""
        since = server.since
        return int(since > 0 and asyncio.get_running_loop().time() < since + self._pause_us / 1e6)


def took_of(runs: Sequence[tuple[int, int]], reply: int | list[int]) -> list[Took]:
    """What a reply to `take` says of each run: a plain number is what is left when everybody was served."""
    if isinstance(reply, int):
        return [Took(runs[0][0], reply, 0)]
    return [Took(*reply[at : at + 3]) for at in range(0, len(reply), 3)]


def micros(seconds: float) -> int:
    """Whole microseconds, up; what binary fractions add is not counted."""
    return math.ceil(round(seconds * 1e6, 3))


def key_name(prefix: str, limit: RateLimit, key: str) -> str:
    """What its keys begin with, one slot of a cluster. `key` is hashed, because it may be an account."""
    hashed = hashlib.blake2b(key.encode(), digest_size=12).hexdigest() if key else "-"
    return f"{prefix}:limit:{{{limit.name}:{hashed}}}"


def _rows(flat: Sequence[int], width: int) -> zip[tuple[int, ...]]:
    parts = iter(flat)
    return zip(*[parts] * width, strict=True)
