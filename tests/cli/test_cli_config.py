"""`aegis config` as a shell and a CI job see it."""

from __future__ import annotations

import json
import subprocess

import pytest

from aegis.config import Config, docs_text, example_text, registry

SECRET = "zq-do-not-show-me-1234"


@pytest.fixture
def aegis(command):
    """`aegis config ...`; nothing that it says ever holds the secret."""

    def run(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        done = command("config", *args, **environ)
        assert SECRET not in done.stdout + done.stderr
        return done

    return run


def test_check_says_that_all_is_well(aegis):
    """Exit code 0, one line with the fingerprint that the log will show."""
    done = aegis("check", REDIS_DB="3")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 of" in done.stdout
    assert Config.load({"REDIS_DB": "3"}, None).fingerprint() in done.stdout


def test_check_names_everything_and_exits_with_78(aegis, tmp_path):
    """Environment and `.env` in one report."""
    (tmp_path / ".env").write_text("\nREDIS_DB=x\n")
    done = aegis("check", REDIS_PORT="1e3", KIS_APP_SECRETT=SECRET, REDIS_PASSWORD=SECRET)
    assert (done.returncode, done.stdout) == (78, "")
    assert "REDIS_DB: expected a whole number in plain digits, got 'x' (source .env:2)" in done.stderr
    assert "did you mean KIS_APP_SECRET?" in done.stderr
    assert "REDIS_PORT" in done.stderr


def test_check_for_scripts(aegis, tmp_path):
    """One JSON object, the same exit code, warnings as well."""
    done = aegis("check", "--json", REDIS_DB="x")
    [problem] = json.loads(done.stdout)["problems"]
    assert done.returncode == 78
    assert (problem["variable"], problem["value"], problem["source"]) == ("REDIS_DB", "x", "environment")
    (key := tmp_path / "key").write_text(SECRET)
    key.chmod(0o644)
    done = aegis("check", "--json", KIS_APP_KEY_FILE=str(key))
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], found["problems"]) == (0, True, [])
    assert found["warnings"][0]["variable"] == "KIS_APP_KEY_FILE"


def test_show_tells_value_and_source_of_every_variable(aegis, tmp_path):
    """Environment, file, secret file, URL, default; secrets are masked."""
    (key := tmp_path / "key").write_text(SECRET)
    key.chmod(0o600)
    (tmp_path / "some.env").write_text("PORT=8090\n")
    environ = {"REDIS_URL": f"redis://:{SECRET}@h/3", "KIS_APP_KEY_FILE": str(key)}
    rows = {
        row["variable"]: (row["value"], row["source"])
        for row in json.loads(aegis("show", "--json", "--env-file", "some.env", **environ).stdout)
    }
    assert list(rows) == [variable.name for variable in registry()]
    assert rows["REDIS_URL"] == ("***", "environment")
    assert rows["REDIS_PASSWORD"] == ("***", "REDIS_URL")
    assert rows["REDIS_DB"] == ("3", "REDIS_URL")
    assert rows["KIS_APP_KEY"] == ("***", f"file {key}")
    assert rows["PORT"] == ("8090", "some.env:1")
    assert rows["REDIS_CONNECT_TIMEOUT"] == ("2s", "default")
    shown = aegis("show", "REDIS_D", "KIS_APP", "--changed", "--hint", "--env-file", "some.env", **environ).stdout
    assert [line.split()[0] for line in shown.splitlines()] == ["REDIS_DB", "KIS_APP_KEY"]
    assert "22 characters ending in 1234" in shown


def test_example_and_docs_print_what_is_committed(aegis):
    """Also with a configuration that cannot be used: they read none."""
    assert aegis("example", REDIS_DB="x").stdout == example_text()
    assert aegis("docs", REDIS_DB="x").stdout == docs_text()


def test_an_env_file_that_is_not_there_is_named(aegis):
    """Whoever names one means it."""
    done = aegis("check", "--env-file", "prod.env")
    assert done.returncode == 78
    assert "prod.env: cannot read prod.env: No such file or directory" in done.stderr


def test_check_connects_only_when_told_to(aegis):
    """A server that is not there is no problem of the configuration, until `--connect` asks for it."""
    nowhere = {"REDIS_URL": "redis://127.0.0.1:1", "DATABASE_URL": "embedded:"}
    assert aegis("check", **nowhere).returncode == 0
    done = aegis("check", "--connect", **nowhere)
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stdout
    assert aegis("check", "--connect", REDIS_DB="x").returncode == 78


def test_what_the_page_shows_is_what_is_said(aegis):
    """The console in docs/configuration.md is no drawing."""
    done = aegis("check", REDIS_PORT="1e3", KIS_APP_SECRETT="x")
    assert done.stderr in docs_text()
    assert f"$ echo $?\n{done.returncode}\n" in docs_text()
