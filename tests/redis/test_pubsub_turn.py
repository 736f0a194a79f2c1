"""What a frame costs its server, and that what it no longer looks up is still right."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from broadcast_events import collect
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from aegis.config import RedisConfig
from aegis.embedded import EmbeddedValkey
from aegis.errors import ServerLostError
from aegis.redis import PubSub, Redis
from aegis.redis.broadcast.lane import _PUBLISH
from aegis.redis.broadcast.reading import _LOOK, read_values
from aegis.redis.broadcast.turn import Turn
from aegis.redis.broadcast.wire import Names, parse_header, stored_prefix

NAMES = Names("aegis", "turn", 1)
KEYS = [NAMES.book(0), NAMES.channel(0), NAMES.log(0)]


async def commands(redis: Redis) -> dict[str, int]:
    """What the server has executed so far, those that scripts called included."""
    found = {}
    for line in (await redis.execute("INFO", "commandstats")).decode().splitlines():
        if line.startswith("cmdstat_"):
            name, _, rest = line.removeprefix("cmdstat_").partition(":calls=")
            found[name] = int(rest.split(",")[0])
    return found


async def spent(redis: Redis, bus: PubSub, frames: int) -> dict[str, int]:
    """What so many frames of ten ticks cost, heartbeats aside."""
    before = await commands(redis)
    for number in range(frames):
        for key in range(10):
            await bus.publish(f"k{key}", number)
        await bus.flush()
    after = await commands(redis)
    cost = {name: count - before.get(name, 0) for name, count in after.items()}
    return {name: count for name, count in cost.items() if count and name != "info"}


async def test_a_frame_is_one_write_and_one_announcement(redis):
    """2/B commands per tick for B ticks per frame, and one call that holds them together; with two producers 3/B."""
    async with PubSub(redis) as bus, PubSub(redis) as other:
        for one in (bus, other):
            await one._pulse.close()
            await one._pulse._ask(0)  # so that it knows the server's time
        await spent(redis, bus, 2)  # all keys are there, and the turn is taken
        assert await spent(redis, bus, 50) == {"evalsha": 50, "hsetex": 50, "publish": 50}
        await spent(redis, other, 1)
        assert await spent(redis, other, 1) == {"evalsha": 1, "hget": 1, "hset": 1, "publish": 1}
        assert await spent(redis, other, 50) == {"evalsha": 50, "hsetex": 50, "publish": 50}
        for _ in range(2):
            await spent(redis, bus, 1)
            cost = await spent(redis, other, 1)
        assert cost == {"evalsha": 1, "hget": 1, "hset": 1, "publish": 1}


async def test_a_server_without_hsetex_is_asked_once(redis):
    """Before Valkey 9 and Redis 8, and where the user may not: every frame is looked up."""
    await redis.execute("ACL", "SETUSER", "older", "on", ">secret", "~*", "&*", "+@all", "-hsetex")
    config = redis.config.model_copy(update={"username": "older", "password": SecretStr("secret")})
    async with Redis(config) as client, PubSub(client) as bus:
        await bus._pulse.close()
        await bus._pulse._ask(0)
        await spent(redis, bus, 4)
        assert await spent(redis, bus, 20) == {"evalsha": 20, "hget": 20, "hset": 20, "publish": 20}
        assert await bus.last("k3") == 19
    await redis.execute("ACL", "DELUSER", "older")


@dataclass
class Model:
    """The server by the rule: every frame counts once, in the order of its first arrival."""

    life: str = ""
    newest: int = 0
    streams: dict[str, int] = field(default_factory=dict)
    versions: dict[tuple[str, int], int] = field(default_factory=dict)
    values: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def publish(self, life: str, stream: str, seq: int, known: int, pairs: dict[str, bytes]) -> tuple[int, int]:
        """Version and what the stream had reached."""
        self.life = self.life or life
        had = self.streams.get(stream, 0)
        if had >= seq:
            return self.versions[stream, had], had
        self.newest = version = max(self.newest, known) + 1
        self.streams[stream], self.versions[stream, seq] = seq, version
        self.values |= {key: (version, payload) for key, payload in pairs.items()}
        return version, had


@dataclass
class Sender:
    """How a lane sends, by itself: what it has in hand, and what may still be on its way."""

    stream: str
    seq: int = 0
    life: str = ""
    known: int = 0
    turn: str = ""
    turns: int = 0
    keys: set[str] = field(default_factory=set)
    pairs: dict[str, bytes] = field(default_factory=dict)  # of the newest frame
    late: list[tuple[int, int, dict[str, bytes], str, str]] = field(default_factory=list)

    def frame(self, pairs: dict[str, bytes]) -> tuple[int, int, dict[str, bytes], str, str]:
        """A new frame, by the turn where there is one."""
        self.seq, self.pairs = self.seq + 1, pairs
        if self.turn and pairs.keys() <= self.keys:
            return self.seq, self.known, pairs, self.turn, self.life
        return self.looked_up()

    def looked_up(self) -> tuple[int, int, dict[str, bytes], str, str]:
        """The newest frame, to be looked up, under the name of another turn."""
        self.turns += 1
        return self.seq, self.known, self.pairs, f"\0{self.stream}.{self.turns}", ""


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["new", "new", "again", "lost", "late", "flush"]),
        st.integers(0, 1),
        st.sets(st.sampled_from("abc"), min_size=1),
    ),
    min_size=4,
    max_size=30,
)


@settings(deadline=None, max_examples=60)  # the machine may be busy
@given(steps=STEPS)
def test_script_and_rule_agree_whoever_publishes(valkey_server: EmbeddedValkey, steps: list[Any]) -> None:
    """Frames of two producers, sent again, arriving late, data lost between: versions, values and answers."""
    asyncio.run(_compare(valkey_server.url, steps))


async def _compare(url: str, steps: list[Any]) -> None:
    model, senders = Model(), (Sender("p.1"), Sender("q.1"))
    async with Redis(RedisConfig(url=url)) as redis:
        await redis.execute("DEL", *KEYS)
        for number, (step, who, keys) in enumerate(steps):
            sender, pairs = senders[who], dict.fromkeys(keys, b"%d" % number)
            if step == "flush":
                await redis.execute("DEL", *KEYS)
                model = Model()
                for one in senders:
                    one.late.clear()
            elif step == "late":  # what an earlier connection still held
                for frame in sender.late:
                    await _send(redis, model, sender, frame, number)
                    sender.turn = ""
                sender.late.clear()
            elif step == "lost":  # it lies on the way, and is sent again meanwhile
                sender.late.append(sender.frame(pairs))
                await _send(redis, model, sender, sender.looked_up(), number)
            else:
                await _send(redis, model, sender, sender.frame(pairs), number)
                if step == "again":  # only the answer was lost
                    await _send(redis, model, sender, sender.looked_up(), number)
            header = parse_header(await redis.run(_LOOK, KEYS[:1]))
            assert (header.life, header.version, header.streams) == (model.life, model.newest, model.streams)
            stored = await read_values(redis, NAMES, 0, None)
            assert {frame.keys[0]: (frame.version, frame.payloads[0]) for frame in stored} == model.values


async def _send(redis: Redis, model: Model, sender: Sender, frame: tuple[Any, ...], number: int) -> None:
    seq, known, pairs, turn, life = frame
    prefix = stored_prefix(known + 1, seq, 0, sender.stream)
    args = [f"life{number}", sender.stream, seq, 1, 0, 0, known + 1, "PUBLISH", turn, life, "body", len(prefix), 0]
    for key, payload in pairs.items():
        args += [key, prefix + payload]
    reply = await redis.run(_PUBLISH, KEYS, args)
    expected = model.publish(f"life{number}", sender.stream, seq, known, pairs)
    assert (reply[0].decode(), int(reply[1]), int(reply[2])) == (model.life, *expected)
    sender.life, sender.known = model.life, max(sender.known, expected[0])
    sender.turn = turn if reply[3] == 1 else ""
    sender.keys |= pairs.keys()


def test_a_turn_is_named_only_where_nothing_can_have_happened():
    """Not before it is confirmed, not while an answer is outstanding, not over another connection, not for new keys."""
    turn = Turn("p.1")
    first, sure = turn.ask(1, known=True)
    assert (first, sure) == ("\0p.1.1", False)
    turn.answered(first, 1, 1)
    assert turn.ask(1, known=True) == (first, True)
    second, sure = turn.ask(1, known=True)  # the first was not answered
    assert (second, sure) == ("\0p.1.2", False)
    turn.answered(second, 1, 1)
    third, sure = turn.ask(2, known=True)
    assert (third, sure) == ("\0p.1.3", False)
    turn.answered(third, 2, 1)
    assert turn.ask(2, known=False) == ("", False)
    turn.answered("\0p.1.4", 2, 0)
    assert turn.ask(2, known=True) == ("\0p.1.4", False)
    turn.answered("\0p.1.4", 2, 1)
    turn.end()
    assert turn.ask(2, known=True) == ("\0p.1.5", False)
    turn.answered("\0p.1.5", 2, -1)
    assert turn.ask(2, known=True) == ("", False)


async def test_a_frame_that_arrives_late_changes_nothing(redis, monkeypatch):
    """Its connection died under it, it was sent again, newer ones followed: now the first one arrives."""
    async with PubSub(redis) as bus, bus.subscribe("a", type=int, policy="all") as updates:
        for number in range(3):
            await bus.publish("a", number)
            await bus.flush()
        lane, real, late = bus._producer.lanes[0], redis.run, []
        assert lane._turn._name

        async def run(script: Any, keys: Any, args: Any, **options: Any) -> Any:
            if script is _PUBLISH and not late:
                late.append((script, keys, args))
                raise ServerLostError(redis.config.address, "EVALSHA", "reset")
            return await real(script, keys, args, **options)

        monkeypatch.setattr(redis, "run", run)
        for number in range(3, 6):
            await bus.publish("a", number)
            await bus.flush()
        [(script, keys, args)] = late
        assert args[9]  # it was sent to be taken without a look
        _, _, had, turn = await real(script, keys, args)
        assert (int(had), turn) == (6, 0)  # that is known
        assert await bus.last("a") == 5
        assert [event.value for event in await collect(updates, 6)] == list(range(6))
