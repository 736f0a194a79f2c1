"""`aegis db`: what a deployment calls before the new release starts."""

from __future__ import annotations

import json

import pytest

from aegis.embedded import EmbeddedPostgres


@pytest.fixture(scope="module")
def url() -> str:
    with EmbeddedPostgres() as server:
        yield server.url


@pytest.fixture
def aegis_db(command):
    return lambda url, *args: command("db", *args, DATABASE_URL=url)


def test_migrate_and_status_tell_what_is_done_and_what_is_left(aegis_db, url, tmp_path):
    """Pending, applied, applied once, edited: on stdout for people, as JSON for scripts, in the exit code for both."""
    (tmp_path / "0001_a.sql").write_text("create table a ()")
    path = ("--path", str(tmp_path))
    assert "pending" in aegis_db(url, "status", *path).stdout
    assert aegis_db(url, "status", *path, "--check").returncode == 1
    done = aegis_db(url, "migrate", *path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "applied 1: 0001_a.sql\n", "applying 0001_a.sql\n")
    assert json.loads(aegis_db(url, "migrate", *path, "--json").stdout) == {"applied": []}
    assert aegis_db(url, "status", *path, "--check").returncode == 0
    (tmp_path / "0001_a.sql").write_text("create table b ()")
    shown = aegis_db(url, "status", *path, "--check", "--json")
    assert shown.returncode == 1
    (only,) = json.loads(shown.stdout)
    assert (only["name"], only["applied"], only["refused"]) == ("0001_a.sql", True, True)
    refused = aegis_db(url, "migrate", *path)
    assert refused.returncode == 1
    assert refused.stderr.startswith("aegis: migration 0001_a.sql: was edited")


def test_what_is_wrong_is_one_line(aegis_db, tmp_path):
    """No server, and an embedded one that nobody started: what, where, why, and exit code 1."""
    for url in (f"postgresql://me:hunter2@/x?host={tmp_path}", "embedded:"):
        done = aegis_db(url, "status")
        assert done.returncode == 1
        assert done.stderr.startswith("aegis: PostgreSQL at ")
        assert done.stderr.count("\n") == 1
        assert "hunter2" not in done.stderr
