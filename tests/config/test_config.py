"""Configuration: every problem at once, by variable name, with its source and without secrets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.config import Config, RedisConfig, child_environ
from aegis.errors import ConfigError


def problems(environ: dict[str, str], env_file=None) -> str:
    with pytest.raises(ConfigError) as raised:
        Config.load(environ, env_file)
    return "\n".join(raised.value.problems)


def test_defaults_are_those_of_the_reference():
    """Nothing is required at load."""
    config = Config.load({}, None)
    assert (config.redis.host, config.redis.port, config.redis.db, config.redis.enabled) == ("localhost", 6379, 0, True)
    assert (config.database.max_conns, config.database.min_conns) == (25, 5)
    assert (config.database.max_conn_lifetime, config.database.max_conn_idle_time) == (3600.0, 1800.0)
    assert (config.port, config.env, config.metrics.port) == (8089, "development", 9090)


def test_every_problem_is_reported_at_once_by_variable_name():
    """Different sections, different kinds, one report."""
    found = problems(
        {
            "REDIS_PORT": "1e3",
            "DB_MAX_CONN_LIFETIME": "30",
            "KIS_APP_SECRETT": "x",
            "LOG_LEVEL": "loud",
            "ENV": "prod",
            "KIS_IS_VIRTUAL": "maybe",
        }
    )
    for name in ("REDIS_PORT", "DB_MAX_CONN_LIFETIME", "LOG_LEVEL", "ENV", "KIS_IS_VIRTUAL"):
        assert f"{name}: " in found
    assert "KIS_APP_SECRETT: unknown variable; did you mean KIS_APP_SECRET?" in found
    assert "got '1e3' (source environment)" in found


def test_env_file_is_read_below_the_environment_and_names_its_line(tmp_path):
    """The environment wins; a problem in the file names the line."""
    file = tmp_path / ".env"
    file.write_text("REDIS_HOST=from-file\nPORT=8090\nFOREIGN=1\nREDIS_DB=x\n")
    assert f"REDIS_DB: expected a whole number in plain digits, got 'x' (source {file}:4)" in problems({}, file)
    file.write_text("REDIS_HOST=from-file\nPORT=8090\nFOREIGN=1\n")
    config = Config.load({"REDIS_HOST": "from-environment"}, file)
    assert (config.redis.host, config.port) == ("from-environment", 8090)


def test_secret_from_a_file(tmp_path):
    """One newline is stripped; both at once is a conflict; an unreadable file is named."""
    file = tmp_path / "secret"
    file.write_text("s3cret\n")
    config = Config.load({"KIS_APP_SECRET_FILE": str(file)}, None)
    assert config.kis.app_secret.get_secret_value() == "s3cret"
    assert "KIS_APP_SECRET: set together with" in problems({"KIS_APP_SECRET_FILE": str(file), "KIS_APP_SECRET": "x"})
    assert "KIS_APP_KEY_FILE: cannot read" in problems({"KIS_APP_KEY_FILE": str(tmp_path / "absent")})


def test_url_spells_out_the_parts_and_may_not_contradict_them():
    """Readers look at one place; a contradiction names both variables and never the password."""
    redis = Config.load({"REDIS_URL": "rediss://me:p%40ss@cache:7000/3"}, None).redis
    assert (redis.host, redis.port, redis.db, redis.tls, redis.username) == ("cache", 7000, 3, True, "me")
    assert redis.password.get_secret_value() == "p@ss"
    assert RedisConfig(url="unix:///run/valkey.sock?db=2").socket == "/run/valkey.sock"
    found = problems({"REDIS_URL": "redis://:hidden-one@h/0", "REDIS_PASSWORD": "hidden-two"})
    assert "REDIS_URL and REDIS_PASSWORD contradict each other" in found
    assert "hidden" not in found


def test_identifiers_stay_text_and_empty_means_unset():
    """Leading zeros survive; an empty value is the default."""
    config = Config.load({"KIS_ACCOUNT_NO": "00123456-01", "REDIS_HOST": "", "KIS_APP_KEY": ""}, None)
    assert config.kis.account_no == "00123456-01"
    assert config.redis.host == "localhost"
    assert config.kis.app_key is None


def test_paper_trading_has_its_own_host():
    """Unless the host is named."""
    assert "openapivts" in Config.load({"KIS_IS_VIRTUAL": "true"}, None).kis.base_url
    assert "openapivts" not in Config.load({}, None).kis.base_url
    assert Config.load({"KIS_IS_VIRTUAL": "true", "KIS_BASE_URL": "http://x"}, None).kis.base_url == "http://x"


@given(secret=st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=8, max_size=30))
def test_secrets_are_never_shown(secret):
    """Not in the repr, not in an error, whatever else is wrong."""
    secret = f"zq{secret}"
    environ = {"KIS_APP_KEY": secret, "KIS_APP_SECRET": secret, "REDIS_PASSWORD": secret, "DART_API_KEY": secret}
    assert secret not in repr(Config.load(environ, None))
    assert secret not in problems({**environ, "REDIS_PORT": "bad", "REDIS_URL": f"redis://:{secret}1@h:1/x"})


def test_children_get_only_what_they_are_given():
    """A REDIS_URL in the user's shell does not reach a process that was given another."""
    environ = child_environ({"REDIS_HOST": "mine"}, {"REDIS_URL": "redis://theirs", "PATH": "/bin", "PORT": "1"})
    assert environ == {"PATH": "/bin", "REDIS_HOST": "mine"}
