"""Sentinel groups and clusters, as a URL and as parts: the same record, and clear words for what cannot be meant."""

from __future__ import annotations

import pytest

from aegis.config import Config, RedisConfig
from aegis.errors import ConfigError

SENTINEL = {"REDIS_MODE": "sentinel", "REDIS_NODES": "s1:26379, s2:26379", "REDIS_SENTINEL_NAME": "main"}
CLUSTER = {"REDIS_MODE": "cluster", "REDIS_NODES": "h1:7000,h2:7001,[::1]:7002"}


def redis(**environ: str) -> RedisConfig:
    return Config.load(environ, None).redis


def problems(environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as raised:
        Config.load(environ, None)
    return str(raised.value)


def same(one: RedisConfig, other: RedisConfig) -> bool:
    return one.model_dump(exclude={"url"}) == other.model_dump(exclude={"url"})


def test_a_sentinel_url_and_its_parts_are_the_same_record():
    """Places, name, database, both logins, and TLS."""
    url = "redis+sentinel://me:p%40ss@s1:26379,s2:26379/main?db=2&sentinel_username=w&sentinel_password=q%26"
    parts = {
        "REDIS_USERNAME": "me",
        "REDIS_PASSWORD": "p@ss",
        "REDIS_DB": "2",
        "REDIS_SENTINEL_USERNAME": "w",
        "REDIS_SENTINEL_PASSWORD": "q&",
    }
    assert same(redis(REDIS_URL=url), redis(**SENTINEL, **parts))
    assert redis(REDIS_URL="rediss+sentinel://s1/main").tls
    assert redis(REDIS_URL="redis+sentinel://s1,s2:1/main").seeds == (("s1", 26379), ("s2", 1))


def test_a_cluster_url_and_its_parts_are_the_same_record():
    """Places, also IPv6, login, and TLS."""
    assert same(redis(REDIS_URL="redis+cluster://h1:7000,h2:7001,[::1]:7002"), redis(**CLUSTER))
    config = redis(REDIS_URL="rediss+cluster://me:pw@h1")
    assert (config.tls, config.username, config.seeds) == (True, "me", (("h1", 6379),))
    assert redis(**CLUSTER).seeds == (("h1", 7000), ("h2", 7001), ("::1", 7002))


def test_the_address_names_the_group_and_holds_no_secret():
    """For messages; one server of the group has its own."""
    config = redis(REDIS_URL="redis+cluster://me:hidden@h1:7000,h2:7001")
    assert config.address == "cluster h1:7000,h2:7001"
    assert config.at("::1", 7001).address == "[::1]:7001"
    assert (config.at("h", 1).mode, config.at("h", 1).password) == ("single", config.password)
    assert redis(**SENTINEL).address == "main of Sentinels s1:26379,s2:26379"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"REDIS_MODE": "sentinel", "REDIS_NODES": "s1"}, "needs the name of the primary"),
        ({"REDIS_MODE": "cluster"}, "REDIS_MODE=cluster needs REDIS_NODES"),
        ({"REDIS_NODES": "h:1"}, "means nothing with REDIS_MODE=single"),
        ({**CLUSTER, "REDIS_HOST": "h"}, "REDIS_HOST: means nothing with REDIS_MODE=cluster"),
        ({**CLUSTER, "REDIS_DB": "1"}, "a cluster has the database 0 only"),
        ({**CLUSTER, "REDIS_NODES": "h:port"}, "'h:port' is no place of a server"),
        ({"REDIS_URL": "redis+cluster://h1:7000", "REDIS_NODES": "h2:7000"}, "REDIS_NODES: contradicts REDIS_URL"),
        ({"REDIS_URL": "redis+cluster://h1:7000", "REDIS_MODE": "single"}, "REDIS_MODE: contradicts REDIS_URL"),
        ({"REDIS_URL": "redis+sentinel://h1:7000"}, "needs the name of the primary"),
        ({"REDIS_URL": "redis+cluster://h1:1/0?sentinel_name=x"}, "unknown option after the ?"),
    ],
)
def test_what_cannot_be_meant_is_said(environ: dict[str, str], words: str):
    """The variable, and what it contradicts or lacks."""
    assert words in problems(environ)


@pytest.mark.parametrize("place", ["", "h1,,h2", "hidden/one@h1", "u:hid/den@h1:1", "h:99999999"])
def test_a_group_url_that_cannot_be_read_is_not_repeated(place: str):
    """What looks like a place may be a password with a slash in it."""
    message = problems({"REDIS_URL": f"redis+cluster://{place}"})
    assert "REDIS_URL: " in message
    assert "hid" not in message
