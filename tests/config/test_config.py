"""Configuration: what `Config.load` gives, and that everything wrong is reported at once, by variable name."""

from __future__ import annotations

import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis.config import Config, RedisConfig, child_environ, registry
from aegis.errors import ConfigError, ConfigProblem


def refused(environ: dict[str, str], env_file=None) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        Config.load(environ, env_file)
    return raised.value


def problems(environ: dict[str, str], env_file=None) -> str:
    return "\n".join(refused(environ, env_file).problems)


def test_defaults_are_those_of_the_reference():
    """Nothing is required at load."""
    config = Config.load({}, None)
    assert (config.redis.host, config.redis.port, config.redis.db, config.redis.enabled) == ("localhost", 6379, 0, True)
    assert (config.database.max_conns, config.database.min_conns) == (25, 5)
    assert (config.database.max_conn_lifetime, config.database.max_conn_idle_time) == (3600.0, 1800.0)
    assert (config.port, config.env, config.metrics.port, config.metrics.enabled) == (8089, "development", 9090, False)
    assert config.redis.password is config.database.url is config.kis.account_no is None


REFERENCE = """
    REDIS_HOST REDIS_PORT REDIS_PASSWORD REDIS_DB REDIS_ENABLED DB_HOST DB_PORT DB_NAME DB_USER DB_PASSWORD DATABASE_URL
    DB_MAX_CONNS DB_MIN_CONNS DB_MAX_CONN_LIFETIME DB_MAX_CONN_IDLE_TIME KIS_APP_KEY KIS_APP_SECRET KIS_ACCOUNT_NO
    KIS_BASE_URL KIS_IS_VIRTUAL KIS_HTS_ID DART_API_KEY DART_BASE_URL NAVER_BASE_URL NAVER_CLIENT_ID NAVER_CLIENT_SECRET
    LOG_LEVEL LOG_FORMAT METRICS_ENABLED METRICS_PORT PORT ENV
""".split()  # noqa: SIM905 - a list of words


def test_every_variable_of_the_reference_is_there_and_every_other_is_in_a_family():
    """Names are a contract; a new one outside the families could not be checked for slips."""
    names = [variable.name for variable in registry()]
    assert set(REFERENCE) <= set(names)
    assert len(set(names)) == len(names)
    families = ("REDIS_", "DB_", "DATABASE_", "HTTP_", "KIS_", "DART_", "NAVER_", "LOG_", "METRICS_", "AEGIS_")
    assert {name for name in names if not name.startswith(families)} == {"PORT", "ENV"}


@pytest.mark.parametrize("variable", registry(), ids=lambda variable: variable.name)
def test_every_variable_says_what_it_is(variable):
    """A meaning without a full stop, a kind, and what holds a secret is one."""
    assert variable.meaning
    assert not variable.meaning.endswith(".")
    assert variable.kind.name
    assert variable.secret == variable.name.endswith(("PASSWORD", "SECRET", "APP_KEY", "API_KEY", "DATABASE_URL",
                                                      "REDIS_URL", "REPLICA_URL", "_TOKEN"))  # fmt: skip


def test_every_problem_is_reported_at_once_by_variable_name():
    """Different sections, different kinds, one sorted report."""
    found = refused(
        {
            "REDIS_PORT": "1e3",
            "REDIS_URL": "http://x",
            "DB_MAX_CONN_LIFETIME": "30",
            "DB_MIN_CONNS": "9",
            "DB_MAX_CONNS": "3",
            "KIS_APP_SECRETT": "x",
            "KIS_APP_KEY_FILE": "/nowhere",
            "LOG_LEVEL": "loud",
            "ENV": "prod",
            "KIS_IS_VIRTUAL": "maybe",
        }
    )
    names = [problem.variable for problem in found.details]
    assert names == sorted(names) == [
        "DB_MAX_CONN_LIFETIME", "DB_MIN_CONNS", "ENV", "KIS_APP_KEY_FILE", "KIS_APP_SECRETT", "KIS_IS_VIRTUAL",
        "LOG_LEVEL", "REDIS_PORT", "REDIS_URL",
    ]  # fmt: skip
    text = str(found)
    assert text.startswith("9 problems in the configuration:")
    assert "KIS_APP_SECRETT: unknown variable; did you mean KIS_APP_SECRET? (source environment)" in text
    assert "REDIS_PORT: expected a whole number in plain digits, got '1e3' (source environment)" in text
    assert "ENV: must be development, staging or production; did you mean production?, got 'prod'" in text
    assert "did you mean 30s?" in text


def test_problems_are_records_for_programs_and_survive_pickling():
    """Name, reason, value, source, kind and suggestion; the same after a trip between processes."""
    found = refused({"REDIS_HOSTT": "x", "REDIS_DB": "-1"})
    by_name = {problem.variable: problem for problem in found.details}
    assert by_name["REDIS_HOSTT"].kind == "unknown"
    assert by_name["REDIS_HOSTT"].suggestion == "REDIS_HOST"
    assert (by_name["REDIS_DB"].value, by_name["REDIS_DB"].source) == ("-1", "environment")
    again = pickle.loads(pickle.dumps(found))
    assert (again.problems, again.details) == (found.problems, found.details)
    assert ConfigError(["A: wrong"]).details == (ConfigProblem("A", "wrong"),)


def test_identifiers_stay_text_and_empty_means_unset():
    """Leading zeros survive; an empty value is the default, in the environment and in a file."""
    config = Config.load({"KIS_ACCOUNT_NO": "00123456-01", "REDIS_HOST": "", "KIS_APP_KEY": ""}, None)
    assert config.kis.account_no == "00123456-01"
    assert config.redis.host == "localhost"
    assert config.kis.app_key is None
    assert Config.load({"KIS_HTS_ID": "005930", "KIS_ACCOUNT_NO": "12345678"}, None).kis.account_no == "12345678"


@pytest.mark.parametrize("level", ["DEBUG", "Debug", "debug"])
def test_level_names_are_read_in_any_case(level):
    """As people write them."""
    assert Config.load({"LOG_LEVEL": level, "LOG_FORMAT": "JSON", "ENV": "Production"}, None).log.level == "debug"


def test_configuration_cannot_be_changed():
    """Frozen, every part of it; a misspelled field is an error, too."""
    config = Config.load({}, None)
    with pytest.raises(ValueError, match="frozen"):
        config.redis.port = 1
    with pytest.raises(ValueError, match="frozen"):
        config.env = "production"
    with pytest.raises(ValueError, match="Extra inputs"):
        RedisConfig(hostt="x")


def test_the_environment_of_the_process_is_the_default(monkeypatch, tmp_path):
    """`Config.load()` reads `os.environ` and `.env` of the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name in {variable.name for variable in registry()}]:
        monkeypatch.delenv(name)
    (tmp_path / ".env").write_text("REDIS_DB=3\nPORT=8090\n")
    monkeypatch.setenv("PORT", "8091")
    config = Config.load()
    assert (config.redis.db, config.port) == (3, 8091)


SECRETS = [variable.name for variable in registry() if variable.secret]


@given(
    secret=st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=8, max_size=30),
    bad=st.sampled_from(["@", "/", "?", "#", ":", "%", " ", "\n", "://", "[", ",", "&", "=", ""]),
    url=st.sampled_from(
        [
            "redis://:{}@h:1/x",
            "rediss://me:{}@h:x",
            "redis+sentinel://:{}@h:1,h2:x/name",
            "redis+cluster://:{}@h:1,h2/3",
            "unix://:{}@/s?db=x",
            "{}",
            "redis:{}",
            "{}://h",
        ]
    ),
)
def test_secrets_are_never_shown(secret, bad, url):
    """Not in the repr, not in an error, whatever is wrong beside them or with them."""
    secret = f"zq{secret}"
    plain = {name: secret for name in SECRETS if not name.endswith("URL")}
    assert secret not in repr(Config.load(plain, None))
    wrong = {
        "REDIS_PORT": "bad",
        "KIS_BASE_URL": f"http://me:{secret}@host",
        **dict.fromkeys(SECRETS, f"{bad}{secret}{bad}"),
        "REDIS_URL": url.format(f"{secret}{bad}{secret}"),
        "DATABASE_URL": f"postgresql://me:{secret}{bad}{secret}@h:1/x?y{secret}=1",
    }
    found = refused(wrong)
    assert secret not in str(found)
    assert secret not in repr(found.details)


def test_children_get_only_what_they_are_given():
    """A REDIS_URL in the user's shell does not reach a process that was given another."""
    environ = child_environ({"REDIS_HOST": "mine"}, {"REDIS_URL": "redis://theirs", "PATH": "/bin", "PORT": "1"})
    assert environ == {"PATH": "/bin", "REDIS_HOST": "mine"}
