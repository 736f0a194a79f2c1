"""Rules over several variables: a URL and parts, pairs, bounds that fit; each names both variables."""

from __future__ import annotations

import pytest

from aegis.config import Config, DatabaseConfig, RedisConfig
from aegis.errors import ConfigError, ConfigProblem


def conflicts(environ: dict[str, str]) -> dict[str, ConfigProblem]:
    with pytest.raises(ConfigError) as raised:
        Config.load(environ, None)
    assert all(problem.kind == "conflict" for problem in raised.value.details)
    return {problem.variable: problem for problem in raised.value.details}


def test_redis_url_spells_out_the_parts():
    """Readers look at one place."""
    redis = Config.load({"REDIS_URL": "rediss://me:p%40ss@cache:7000/3"}, None).redis
    assert (redis.host, redis.port, redis.db, redis.tls, redis.username) == ("cache", 7000, 3, True, "me")
    assert redis.password.get_secret_value() == "p@ss"
    assert RedisConfig(url="unix:///run/valkey.sock?db=2").socket == "/run/valkey.sock"
    assert RedisConfig(url="redis://h", password="added").password.get_secret_value() == "added"


def test_database_url_spells_out_the_parts():
    """As libpq reads it."""
    database = Config.load({"DATABASE_URL": "postgresql://me:a+b@h1,h2:6000/x?pgbouncer=true"}, None).database
    assert (database.host, database.user, database.name, database.pgbouncer) == ("h1,h2", "me", "x", True)
    assert database.password.get_secret_value() == "a+b"
    assert DatabaseConfig(url="postgresql://h/x?connect_timeout=7").connect_timeout == 7.0


@pytest.mark.parametrize(
    ("url", "variable", "value"),
    [
        ("redis://h:7000/3", "REDIS_HOST", "other"),
        ("redis://h:7000/3", "REDIS_PORT", "6379"),
        ("redis://h:7000/3", "REDIS_DB", "0"),
        ("redis://:hidden-one@h", "REDIS_PASSWORD", "HIDDEN-ONE"),
        ("redis://h", "REDIS_TLS", "true"),
        ("unix:///s", "REDIS_SOCKET", "/t"),
        ("embedded:", "REDIS_HOST", "prod"),
        ("postgresql://h/x", "DB_HOST", "other"),
        ("postgresql://me@h/x", "DB_USER", "you"),
        ("postgresql://h:1/x", "DB_PORT", "5432"),
        ("postgresql://:hidden-one@h/x", "DB_PASSWORD", "hidden-two"),
        ("postgresql://h/x?target_session_attrs=primary", "DB_TARGET_SESSION_ATTRS", "any"),
        ("embedded:", "DB_HOST", "prod"),
    ],
)
def test_a_part_that_says_something_else_than_the_url_is_a_conflict(url, variable, value):
    """Both variables are named with their sources, the password is not shown; the same value is fine."""
    of_url = "DATABASE_URL" if variable.startswith("DB_") else "REDIS_URL"
    [problem] = conflicts({of_url: url, variable: value}).values()
    assert (problem.variable, problem.against) == (variable, of_url)
    assert f"{of_url}: environment" in problem.source
    assert "hidden" not in str(problem).lower()


def test_a_part_that_says_the_same_as_the_url_is_fine():
    """Host names in any case; nothing is lost."""
    Config.load({"REDIS_URL": "redis://Cache:7000/3", "REDIS_HOST": "cache", "REDIS_PORT": "7000"}, None)
    Config.load({"DATABASE_URL": "postgresql://me@h:1/x", "DB_USER": "me", "DB_NAME": "x", "DB_PORT": "1"}, None)


def test_bad_urls_are_the_problem_of_their_variable():
    """The URL is named, not a part of it, and never repeated."""
    for environ in (
        {"REDIS_URL": "http://hidden"},
        {"REDIS_URL": "redis://h:hidden"},
        {"REDIS_URL": "redis://h/hidden"},
        {"REDIS_URL": "redis://h?hidden=1"},
        {"DATABASE_URL": "mysql://hidden"},
        {"DATABASE_URL": "postgresql://h/x?pgbouncer=hidden"},
        {"DATABASE_REPLICA_URL": "postgresql://h:hidden/x"},
    ):
        with pytest.raises(ConfigError) as raised:
            Config.load(environ, None)
        [problem] = raised.value.details
        assert problem.variable == next(iter(environ))
        assert "hidden" not in str(problem)


def test_bounds_fit_into_each_other():
    """The inner bound is named, with the outer one and both values as they are written."""
    assert "9 is above DB_MAX_CONNS=3" in str(conflicts({"DB_MIN_CONNS": "9", "DB_MAX_CONNS": "3"})["DB_MIN_CONNS"])
    found = conflicts({"HTTP_TIMEOUT": "1s", "HTTP_ATTEMPT_TIMEOUT": "2s", "HTTP_CONNECT_TIMEOUT": "3s"})
    assert "2s is longer than HTTP_TIMEOUT=1s" in str(found["HTTP_ATTEMPT_TIMEOUT"])
    assert "3s is longer than HTTP_ATTEMPT_TIMEOUT=2s" in str(found["HTTP_CONNECT_TIMEOUT"])


def test_a_finding_that_rests_on_a_bad_value_is_not_made():
    """DB_MAX_CONNS cannot be read, so nothing is said about its default of 25; the timeouts are judged all the same."""
    with pytest.raises(ConfigError) as raised:
        Config.load({"DB_MIN_CONNS": "30", "DB_MAX_CONNS": "many", "HTTP_MAX_BODY": "x", "HTTP_TIMEOUT": "1s"}, None)
    named = [problem.variable for problem in raised.value.details]
    assert named == ["DB_MAX_CONNS", "HTTP_ATTEMPT_TIMEOUT", "HTTP_MAX_BODY"]


def test_pairs_go_together():
    """A client certificate without its key, a socket beside a host."""
    assert "set both or none" in str(conflicts({"REDIS_TLS_CERT_FILE": "/c"})["REDIS_TLS_CERT_FILE"])
    assert "set both or none" in str(conflicts({"REDIS_TLS_KEY_FILE": "/k"})["REDIS_TLS_KEY_FILE"])
    assert conflicts({"REDIS_SOCKET": "/s", "REDIS_HOST": "h"})["REDIS_HOST"].against == "REDIS_SOCKET"


def test_paper_trading_has_its_own_host():
    """Unless the host is named."""
    assert "openapivts" in Config.load({"KIS_IS_VIRTUAL": "true"}, None).kis.base_url
    assert "openapivts" not in Config.load({}, None).kis.base_url
    assert Config.load({"KIS_IS_VIRTUAL": "true", "KIS_BASE_URL": "http://x/"}, None).kis.base_url == "http://x"


@pytest.mark.parametrize(("virtual", "host"), [("true", "openapi"), ("false", "openapivts")])
def test_paper_and_real_money_are_never_mixed(virtual, host):
    """Paper trading against the real host would place real orders."""
    url = Config.load({"KIS_IS_VIRTUAL": "false" if virtual == "true" else "true"}, None).kis.base_url
    assert f"//{host}." in url
    name = url.removeprefix("https://").partition(":")[0]
    for written in (url, f"{url}/", f"HTTPS://{name.upper()}", f"http://{name}.:1/x"):
        [problem] = conflicts({"KIS_IS_VIRTUAL": virtual, "KIS_BASE_URL": written}).values()
        assert (problem.variable, problem.against) == ("KIS_BASE_URL", "KIS_IS_VIRTUAL")


@pytest.mark.parametrize(
    "url", ["opendart.fss.or.kr", "ftp://x", "https://", "https://me:hidden@x", "https://x?k=1", "https://x:0"]
)
def test_addresses_of_services_are_addresses(url):
    """A scheme, a host, no login; a login is not repeated."""
    with pytest.raises(ConfigError) as raised:
        Config.load({"DART_BASE_URL": url}, None)
    assert "DART_BASE_URL: expected an address" in str(raised.value)
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize("port", ["1", "65535"])
def test_every_port_that_there_is_will_do(port):
    """Also the first and the last."""
    url = f"http://x:{port}"
    assert Config.load({"DART_BASE_URL": f"{url}/"}, None).dart.base_url == url
    with pytest.raises(ConfigError):
        Config.load({"DART_BASE_URL": "http://x:65536"}, None)


def test_production_is_warned_of_what_is_not_shared(caplog):
    """Allowed, and hardly meant: one line each."""
    Config.load({"ENV": "production", "REDIS_URL": "embedded:", "DATABASE_URL": "embedded:"}, None)
    assert [message.partition(":")[0] for message in caplog.messages] == ["REDIS_URL", "DATABASE_URL"]
    Config.load({"ENV": "production", "REDIS_ENABLED": "false"}, None)
    assert "no limit holds" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("REDIS_PORT", "65536"),
        ("REDIS_PORT", "-1"),
        ("REDIS_DB", "-1"),
        ("DB_MAX_CONNS", "0"),
        ("HTTP_MAX_BODY", "0"),
        ("REDIS_CONNECT_TIMEOUT", "0"),
        ("HTTP_TIMEOUT", "0s"),
    ],
)
def test_what_is_out_of_range_is_refused(variable, text):
    """Each bound of each kind."""
    with pytest.raises(ConfigError) as raised:
        Config.load({variable: text}, None)
    assert {problem.variable for problem in raised.value.details} == {variable}


def test_the_ends_of_the_ranges_are_in():
    """0 is a port (any free one), a number of a database, and no bound for a statement."""
    environ = {"REDIS_PORT": "65535", "PORT": "0", "REDIS_DB": "0", "DB_MIN_CONNS": "0", "DB_MAX_CONNS": "1"}
    config = Config.load({**environ, "DB_STATEMENT_TIMEOUT": "0", "DB_LOCK_TIMEOUT": "1ms", "HTTP_MAX_BODY": "1"}, None)
    assert (config.redis.port, config.port, config.database.min_conns) == (65_535, 0, 0)
    assert (config.database.statement_timeout, config.database.lock_timeout) == (0.0, 0.001)
