"""The cache's scripts and ten lines of rules give the same answers, step by step, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aegis.redis._script import load_script

VALUE, LEASE, TAG, CHANNEL = "oracle:cache:{k}", "oracle:lease:{k}", "oracle:tag:t", "oracle:loads"
FOREIGN = "foreign"  #: a list where a value should be


class Rules:
    """What lies under one key: a value, and a lease that is free, held by a token (others wait or not), or quiet."""

    def __init__(self) -> None:
        self.value: str | None = None
        self.token: str | None = None
        self.waited_for = False
        self.error: str | None = None
        self.told: list[str] = []

    def lead(self, token: str, seen: str) -> tuple[int, str]:
        if self.value not in {None, "", FOREIGN} and (not seen or not self.value.startswith(seen)):
            return 1, self.value
        if self.error is not None:
            return 3, self.error
        if self.token is not None:
            self.waited_for = True
            return 2, ""
        self.token, self.waited_for = token, False
        return 0, ""

    def store(self, token: str, value: str) -> int:
        if self.token != token:
            return 0
        self.value = value
        self._end("+k")
        return 1

    def renew(self, token: str) -> int:
        return int(self.token == token)

    def release(self, token: str, error: str) -> int:
        if self.token != token:
            return 0
        self._end("+k")
        self.error = error or None
        return 1

    def set(self, value: str) -> int:
        self.value = value
        self._withdraw()
        return 1

    def delete(self) -> int:
        existed, self.value = self.value is not None, None
        self._withdraw()
        return int(existed)

    def delete_if(self, seen: str) -> int:
        if self.value in {None, FOREIGN} or not self.value.startswith(seen):
            return 0
        self.value = None
        return 1

    def foreign(self) -> None:
        self.value = FOREIGN

    def _end(self, announcement: str) -> None:
        if self.waited_for:
            self.told.append(announcement)
        self.token, self.waited_for = None, False

    def _withdraw(self) -> None:
        if self.token is not None or self.error is not None:
            self.told.append("-k")
        self.token, self.waited_for, self.error = None, False, None

    @property
    def lease(self) -> str | None:
        if self.error is not None:
            return f"E{self.error}"
        return None if self.token is None else f"{int(self.waited_for)}{self.token}"


class Server:
    """The same questions, asked by the scripts."""

    def __init__(self, client: redis.Redis, heard: redis.client.PubSub) -> None:
        self.client, self._heard = client, heard
        client.delete(VALUE, LEASE, TAG)
        self.told()

    def run(self, script: str, keys: list[str], *args: Any) -> Any:
        return self.client.eval(load_script(f"cache_{script}").source, len(keys), *keys, *args)

    def lead(self, token: str, seen: str) -> tuple[int, str]:
        state, text, left_ms = self.run("lead", [VALUE, LEASE], token, 50_000, seen)
        assert left_ms == pytest.approx({0: 50_000, 1: 90_000, 2: 50_000, 3: 20_000}[state], abs=9_000)
        return state, text.decode()

    def store(self, token: str, value: str) -> int:
        return self.run("store", [VALUE, LEASE, CHANNEL], token, value, 90_000, "PUBLISH", "+k")

    def renew(self, token: str) -> int:
        self.client.pexpire(LEASE, 50_000, lt=True)
        before_ms = self.client.pttl(LEASE)
        renewed = self.run("renew", [LEASE], token, 54_000)
        assert (self.client.pttl(LEASE) > before_ms + 2_000) == bool(renewed)
        return renewed

    def release(self, token: str, error: str) -> int:
        return self.run("release", [LEASE, CHANNEL], token, error, 20_000, "PUBLISH", "+k")

    def set(self, value: str) -> int:
        return self.run("set", [VALUE, LEASE], value, 90_000, CHANNEL, "-k")

    def delete(self) -> int:
        return self.run("delete", [VALUE, LEASE], CHANNEL, "-k")

    def delete_if(self, seen: str) -> int:
        return self.run("delete_if", [VALUE], seen)

    def foreign(self) -> None:
        self.client.delete(VALUE)
        self.client.rpush(VALUE, "x")

    @property
    def value(self) -> str | None:
        if self.client.type(VALUE) == b"list":
            return FOREIGN
        value = self.client.get(VALUE)
        assert value is None or 80_000 < self.client.pttl(VALUE) <= 90_000
        return None if value is None else value.decode()

    @property
    def lease(self) -> str | None:
        lease = self.client.get(LEASE)
        assert lease is None or 0 < self.client.pttl(LEASE) <= (20_000 if lease.startswith(b"E") else 54_000)
        return None if lease is None else lease.decode()

    def told(self) -> list[str]:
        """Everything that was announced since the last time."""
        self._heard.ping("so far")
        told = []
        while (message := self._heard.get_message(timeout=20))["type"] != "pong":
            if message["type"] == "message":
                told.append(message["data"].decode())
        return told


tokens, values = st.sampled_from(["ab", "cd"]), st.sampled_from(["one-1", "two-2", ""])
seen = st.sampled_from(["", "one", "two"])
lead = st.tuples(st.just("lead"), tokens, seen)
STEPS = st.one_of(
    lead,
    lead,
    lead,
    st.tuples(st.just("store"), tokens, values),
    st.tuples(st.just("renew"), tokens),
    st.tuples(st.just("release"), tokens, st.sampled_from(["", "upstream"])),
    st.tuples(st.just("set"), values),
    st.tuples(st.just("set"), values),
    st.tuples(st.just("delete")),
    st.tuples(st.just("delete_if"), st.sampled_from(["one", "two"])),
    st.tuples(st.just("foreign")),
)


@pytest.fixture(scope="module")
def connections(valkey_server) -> Iterator[tuple[redis.Redis, redis.client.PubSub]]:
    """A blocking client, and one that listens to the announcements."""
    with redis.Redis(port=valkey_server.port) as client, client.pubsub() as heard:
        heard.subscribe(CHANNEL)
        yield client, heard


QUIET = [("lead", "ab", ""), ("lead", "cd", ""), ("release", "ab", "upstream"), ("lead", "cd", "")]
RENEWED = [
    ("set", "one-1"),
    ("lead", "ab", "one"),
    ("lead", "cd", "one"),
    ("store", "ab", "two-2"),
    ("lead", "cd", "two"),
]


@example(steps=[*QUIET, ("renew", "cd"), ("store", "cd", "one-1"), ("delete",), ("lead", "cd", "")])
@example(steps=[*QUIET, ("set", "one-1"), ("lead", "cd", "")])
@example(steps=[*RENEWED, ("lead", "ab", ""), ("delete_if", "one"), ("delete_if", "two"), ("release", "ab", "")])
@example(steps=[("foreign",), ("delete_if", "one"), ("lead", "ab", ""), ("renew", "cd"), ("renew", "ab"), ("delete",)])
@example(steps=[("lead", "ab", ""), ("release", "ab", ""), ("lead", "cd", ""), ("store", "cd", "one-1"), ("delete",)])
@given(steps=st.lists(STEPS, min_size=6, max_size=20))
@settings(max_examples=100, deadline=None)
def test_scripts_and_rules_agree(connections, steps):
    """Any run of questions: the same answers, the same value and lease with their lives, the same announcements."""
    rules, server = Rules(), Server(*connections)
    for name, *arguments in steps:
        assert getattr(server, name)(*arguments) == getattr(rules, name)(*arguments), name
        assert (server.value, server.lease) == (rules.value, rules.lease), name
        assert server.told() == rules.told, name
        rules.told.clear()


def test_a_generation_is_made_once_and_lives_long_enough(connections):
    """Made where there is none and asked for; kept; prolonged to twice what is needed, only when it is too short."""
    server = Server(*connections)

    def ask(new: str, least_ms: int) -> tuple[str, int]:
        return server.run("tag", [TAG], new, least_ms).decode(), server.client.pttl(TAG)

    assert ask("", 50_000) == ("", -2)
    assert ask("a", 50_000) == ("a", pytest.approx(100_000, abs=9_000))
    assert ask("b", 50_000) == ("a", pytest.approx(100_000, abs=9_000))
    assert ask("", 80_000) == ("a", pytest.approx(100_000, abs=9_000))
    assert ask("", 400_000) == ("a", pytest.approx(800_000, abs=9_000))
    assert ask("b", 50_000) == ("a", pytest.approx(800_000, abs=9_000))
    assert ask("", 32_000_000_000_000) == ("a", pytest.approx(64_000_000_000_000, abs=9_000))
    server.client.delete(TAG)
    assert ask("b", 1)[0] == "b"
