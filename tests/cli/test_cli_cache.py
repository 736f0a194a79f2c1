"""`aegis cache` against a real server, as a shell would run it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest

from aegis import sync
from aegis.config import Config


@pytest.fixture
def redis(valkey_server) -> Iterator[sync.Redis]:
    with sync.Redis(Config.load({"REDIS_URL": valkey_server.url}, None).redis) as opened:
        opened.execute("FLUSHALL")
        yield opened


@pytest.fixture
def aegis(command, valkey_server):
    def run(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return command("cache", *args, **{"REDIS_URL": valkey_server.url, **environ})

    return run


def test_get_shows_the_value_and_its_life(redis, aegis):
    """As text and as JSON, with its namespace in the key; exit code 1 and a hint where there is none."""
    sync.Cache(redis).namespace("kis").set("stock:005930", {"name": "삼성전자"}, ttl=60, tags=("krx",))
    done = aegis("get", "kis:stock:005930")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"name": "삼성전자"})
    assert "tags: kis:krx" in done.stderr
    shown = json.loads(aegis("get", "kis:stock:005930", "--json").stdout)
    assert (shown["key"], shown["tags"]) == ("kis:stock:005930", ["kis:krx"])
    assert 0 < shown["expires_in_s"] <= 60
    none = aegis("get", "kis:other")
    assert (none.returncode, none.stdout) == (1, "")
    assert "'kis:other'" in none.stderr


def test_what_looks_like_a_secret_is_masked(redis, aegis):
    """By the key's name or a field's, however deep; --reveal shows it."""
    cache = sync.Cache(redis)
    cache.set("kis-token:real", {"value": "eyJ0"})
    cache.set("login", {"user": "me", "parts": [{"app_secret": "eyJ0"}]})
    for key in ("kis-token:real", "login"):
        for flags in ((), ("--json",)):
            assert "eyJ0" not in aegis("get", key, *flags).stdout
        assert "eyJ0" in aegis("get", key, "--reveal").stdout
    assert '"me"' in aegis("get", "login").stdout


def test_keys_stats_invalidate_and_delete(redis, aegis):
    """What is listed and counted is what is there; what is removed is gone."""
    cache = sync.Cache(redis)
    cache.set_many({f"stock:{n:03}": n for n in range(5)}, tags=("krx",))
    cache.set("token", "x")
    with pytest.raises(ZeroDivisionError):
        cache.get_or_set("quiet", lambda: 1 // 0, error_ttl_s=60)
    redis.execute("SET", "aegis:lease:{busy}", "0abc")
    assert aegis("keys", "stock:*").stdout.split() == [f"stock:{n:03}" for n in range(5)]
    limited = json.loads(aegis("keys", "stock:*", "--limit", "2", "--json").stdout)
    assert limited == {"keys": ["stock:000", "stock:001"], "more": True} or len(limited["keys"]) == 2
    stats = json.loads(aegis("stats", "--json").stdout)
    assert {name: stats[name] for name in ("values", "loading", "failing", "tags")} == {
        "values": 6, "loading": 1, "failing": 1, "tags": 1,
    }  # fmt: skip
    assert stats["groups"]["stock"]["values"] == 5
    assert stats["bytes"] == sum(group["bytes"] for group in stats["groups"].values())
    assert "stock" in aegis("stats").stdout
    assert aegis("invalidate", "krx").returncode == 0
    assert cache.get("stock:001") is None
    assert "is deleted" in aegis("delete", "token").stdout
    assert cache.get("token") is None


def test_without_a_shared_server_it_says_so(aegis):
    """A disabled or an embedded Redis is a matter of configuration, one that does not answer a failure."""
    for environment in ({"REDIS_ENABLED": "false"}, {"REDIS_URL": "embedded:"}):
        done = aegis("stats", **environment)
        assert done.returncode == 78
        assert "no shared server" in done.stderr
    refused = aegis("get", "k", REDIS_URL="redis://127.0.0.1:1")
    assert refused.returncode == 1
    assert "127.0.0.1:1" in refused.stderr
