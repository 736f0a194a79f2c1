"""Where values come from: precedence, `.env`, secrets in files, names that nobody knows."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys

import pytest

from aegis.config import Config, examine, registry
from aegis.errors import ConfigError, ConfigProblem

KEY = "KIS_APP_KEY"


def found(environ=None, env_file=None, overrides=None) -> dict[str, ConfigProblem]:
    with pytest.raises(ConfigError) as raised:
        Config.load(environ or {}, env_file, overrides=overrides)
    return {problem.variable: problem for problem in raised.value.details}


@pytest.mark.parametrize("present", list(itertools.product([False, True], repeat=3)))
def test_the_strongest_source_wins(present, tmp_path):
    """Overrides over environment over `.env` over default, for each combination; the source is told."""
    in_override, in_environ, in_file = present
    file = tmp_path / ".env"
    file.write_text("\nREDIS_DB=1\n" if in_file else "")
    examined = examine({"REDIS_DB": "2"} if in_environ else {}, file, {"REDIS_DB": "3"} if in_override else None)
    database = next(variable for variable in registry() if variable.name == "REDIS_DB")
    expected = (3, "argument") if in_override else (2, "environment") if in_environ else (1, f"{file}:2")
    assert (examined.config.redis.db, examined.source(database)) == (expected if any(present) else (0, "default"))


def test_a_file_secret_stands_between_environment_and_env_file(tmp_path):
    """`X_FILE` of the environment wins over `X` in `.env`."""
    (secret := tmp_path / "key").write_text("from-file\n")
    secret.chmod(0o600)
    (file := tmp_path / ".env").write_text(f"{KEY}=from-env-file\n")
    assert Config.load({f"{KEY}_FILE": str(secret)}, file).kis.app_key.get_secret_value() == "from-file"
    assert Config.load({}, file).kis.app_key.get_secret_value() == "from-env-file"


def test_a_secret_given_twice_is_a_conflict_that_names_both(tmp_path):
    """Also when both stand in the `.env`; the value is not shown."""
    (secret := tmp_path / "key").write_text("hidden")
    (file := tmp_path / ".env").write_text(f"{KEY}=hidden\n{KEY}_FILE={secret}\n")
    for problem in (found({KEY: "hidden", f"{KEY}_FILE": str(secret)})[KEY], found({}, file)[KEY]):
        assert (problem.kind, problem.against) == ("conflict", f"{KEY}_FILE")
        assert "hidden" not in str(problem)


@pytest.mark.parametrize(
    ("content", "value"), [("s3cret\n", "s3cret"), ("s3cret", "s3cret"), ("s3cret\r\n", "s3cret"), ("a b\n", "a b")]
)
def test_one_line_end_of_a_secret_file_is_cut(content, value, tmp_path):
    """And nothing else of it."""
    (secret := tmp_path / "key").write_bytes(content.encode())
    assert examine({f"{KEY}_FILE": str(secret)}, None).config.kis.app_key.get_secret_value() == value


def test_secret_files_that_cannot_be_used_are_named(tmp_path):
    """Absent, empty, too large, no text, more than one line: the path, and never the content."""
    for name, content, says in (
        ("absent", None, "cannot read"),
        ("empty", b"\n", "is empty"),
        ("large", b"x" * 65_537, "more than 64 KiB"),
        ("korean", "한국".encode("cp949"), "not UTF-8"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        problem = found({f"{KEY}_FILE": str(path)})[f"{KEY}_FILE"]
        assert says in problem.reason
        assert str(path) in problem.reason
    (lines := tmp_path / "lines").write_text("hidden\n\n")
    assert "control character" in found({f"{KEY}_FILE": str(lines)})[KEY].reason


def test_a_secret_file_that_everybody_can_read_is_a_warning(tmp_path, caplog):
    """Logged once per load, with the remedy; a private file is not."""
    (secret := tmp_path / "key").write_text("hidden")
    with caplog.at_level(logging.WARNING, "aegis.config"):
        secret.chmod(0o600)
        Config.load({f"{KEY}_FILE": str(secret)}, None)
        assert not caplog.records
        secret.chmod(0o644)
        Config.load({f"{KEY}_FILE": str(secret)}, None)
    [line] = caplog.messages
    assert "chmod 600" in line
    assert "hidden" not in line


def test_only_secrets_are_read_from_files():
    """`REDIS_HOST_FILE` is a misunderstanding, and is told so."""
    problem = found({"REDIS_HOST_FILE": "/etc/hostname"})["REDIS_HOST_FILE"]
    assert "only secrets" in problem.reason
    assert problem.suggestion == "REDIS_HOST"


def test_lines_of_an_env_file_are_counted_right(tmp_path):
    """Behind blank lines, comments, quotes over several lines and `export`: the number is the one an editor shows."""
    (file := tmp_path / ".env").write_text(
        "# comment\n\n\nREDIS_DB=x\n\nFOREIGN='two\nlines'\n\nexport PORT=y\nbad line\n  LOG_LEVEL = 'z' # why\n"
    )
    problems = found({}, file)
    lines = {"REDIS_DB": 4, "PORT": 9, "LOG_LEVEL": 11}
    assert {name: problems[name].source for name in lines} == {name: f"{file}:{at}" for name, at in lines.items()}
    assert "NAME=value" in problems[f"{file}:10"].reason


def test_env_file_as_windows_writes_it(tmp_path):
    """A byte order mark and CR LF do not become part of names or values."""
    (file := tmp_path / ".env").write_bytes("\ufeffREDIS_HOST=h\r\nPORT=8090\r\n".encode())
    config = Config.load({}, file)
    assert (config.redis.host, config.port) == ("h", 8090)


def test_env_files_that_cannot_be_read_are_one_problem(tmp_path):
    """A `.env` may be absent; any other name was meant. No text and no file are problems, not tracebacks."""
    assert Config.load({}, tmp_path / ".env") == Config.load({}, None)
    assert "cannot read" in found({}, tmp_path / "prod.env")[str(tmp_path / "prod.env")].reason
    (korean := tmp_path / "korean.env").write_bytes("KIS_HTS_ID=한국".encode("cp949"))
    assert "UTF-8" in found({}, korean)[str(korean)].reason
    (tmp_path / "dir" / ".env").mkdir(parents=True)
    assert "cannot read" in found({}, tmp_path / "dir" / ".env")[str(tmp_path / "dir" / ".env")].reason


def test_a_name_twice_in_an_env_file_is_a_conflict(tmp_path):
    """Unless both say the same; names of others are not ours to judge."""
    (file := tmp_path / ".env").write_text("PORT=1\nPORT=2\n")
    problem = found({}, file)["PORT"]
    assert problem.kind == "conflict"
    assert f"{file}:1" in problem.reason
    assert problem.source == f"{file}:2"
    file.write_text("PORT=1\nPORT=1\nOTHER=1\nOTHER=2\n")
    assert Config.load({}, file).port == 1


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("KIS_APP_SECRETT", "KIS_APP_SECRET"),
        ("REDIS_HOSTNAME", "REDIS_HOST"),
        ("DB_MAX_CONN", "DB_MAX_CONNS"),
        ("redis_host", "REDIS_HOST"),
        ("DATABASE_URI", "DATABASE_URL"),
        ("LOG_LVL", "LOG_LEVEL"),
    ],
)
def test_mistyped_names_are_told_what_was_meant(name, meant, tmp_path):
    """In the environment and in the file alike; the value is not shown, it may be a secret."""
    (file := tmp_path / ".env").write_text(f"OTHER=1\n{name}=hidden\n")
    for problem, source in ((found({name: "hidden"})[name], "environment"), (found({}, file)[name], f"{file}:2")):
        assert (problem.kind, problem.suggestion, problem.source) == ("unknown", meant, source)
        assert "hidden" not in str(problem)


def test_names_of_others_are_left_alone():
    """Foreign names, the proxy, what Kubernetes adds, and what AEGIS_IGNORE lists."""
    Config.load(
        {
            "MY_APP_SECRET": "x",
            "http_proxy": "x",
            "HTTP_PROXY": "x",
            "REDIS_SERVICE_HOST": "10.0.0.1",
            "REDIS_SERVICE_PORT_RESP": "6379",
            "DB_PORT_5432_TCP_ADDR": "10.0.0.1",
            "REDIS_EXPORTER_ADDR": "x",
            "DB_BACKUP_DIR": "x",
            "AEGIS_IGNORE": "REDIS_EXPORTER_ADDR, DB_BACKUP_*",
        },
        None,
    )
    assert "AEGIS_IGNORE" in found({"DB_BACKUP_DIR": "x"})["DB_BACKUP_DIR"].reason


def test_a_service_link_of_kubernetes_is_explained():
    """A service called `redis` sets REDIS_PORT=tcp://...: say so."""
    assert "enableServiceLinks" in found({"REDIS_PORT": "tcp://10.0.0.1:6379"})["REDIS_PORT"].reason


@pytest.mark.parametrize("text", [" localhost", "localhost ", "local\nhost", "\x7f"])
def test_slips_of_copying_are_refused(text):
    """Blanks at an end and control characters are never meant."""
    assert found({"REDIS_HOST": text})["REDIS_HOST"].kind == "malformed"
    assert text.strip() not in str(found({KEY: text})[KEY])


def test_bad_overrides_name_their_source():
    """They are checked like everything else."""
    assert found(overrides={"REDIS_DB": "x"})["REDIS_DB"].source == "argument"
    assert found(overrides={"REDIS_DBB": "x"})["REDIS_DBB"].suggestion == "REDIS_DB"


def test_a_process_that_configures_no_logging_sees_nothing():
    """Warnings are for the log, not for the standard error of whoever imports us."""
    code = "from aegis import Config; Config.load({'ENV': 'production', 'REDIS_ENABLED': 'false'}, None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True)
    assert (done.stdout, done.stderr) == ("", "")
