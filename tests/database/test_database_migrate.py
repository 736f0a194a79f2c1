"""Migrations: in order, once, whoever asks; what was changed or fails is named and leaves nothing behind."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest

from aegis.config import DatabaseConfig
from aegis.database import MIGRATIONS, Database
from aegis.database._sql import statements
from aegis.errors import MigrationError


def write(directory: Path, **files: str) -> Path:
    for name, sql in files.items():
        (directory / f"{name.removeprefix('n')}.sql").write_text(sql)
    return directory


MIGRATE = """
import asyncio, sys
from aegis.config import DatabaseConfig
from aegis.database import Database

async def main():
    sys.stdin.readline()
    async with Database(DatabaseConfig(url=sys.argv[1], min_conns=0, max_conns=1)) as db:
        print(await db.migrate(sys.argv[2]))

asyncio.run(main())
"""


async def test_three_processes_at_once_apply_once(db, postgres_server, tmp_path):
    """They start together; each file is applied by exactly one of them, and all come back when all is applied."""
    write(
        tmp_path,
        n0001_a="create table log (n int); insert into log values (1)",
        n0002_b="select pg_sleep(0.2); insert into log values (2)",
        n0003_c="-- no-transaction\ninsert into log values (3); insert into log values (4);",
    )
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", MIGRATE, postgres_server.url, tmp_path,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        process.stdin.write(b"go\n")
    answers = sorted([(await process.communicate())[0].decode().strip() for process in processes])
    assert all(process.returncode == 0 for process in processes)
    assert answers == ["['0001_a.sql', '0002_b.sql', '0003_c.sql']", "[]", "[]"]
    assert [row["n"] for row in await db.fetch("select n from log order by n")] == [1, 2, 3, 4]


async def test_three_pools_of_one_process_apply_once(db, postgres_server):
    """The migrations that come with aegis, asked for by three that start together."""
    config = DatabaseConfig(url=postgres_server.url, min_conns=0)
    async with Database(config) as other, Database(config) as third:
        done = await asyncio.gather(*(each.migrate(MIGRATIONS) for each in (db, other, third)))
    assert sorted(map(len, done)) == [0, 0, 1]
    assert await db.fetch_value("select count(*) from daily_prices") == 0


async def test_edited_late_and_failing_files_are_refused(db, tmp_path):
    """The error names the file, and nothing of it is left behind."""
    write(tmp_path, n0002_a="create table a ()")
    await db.migrate(str(tmp_path))
    write(tmp_path, n0003_b="create table b (); select 1/0", n0004_c="create table c ()")
    with pytest.raises(MigrationError, match=r"0003_b\.sql.*22012"):
        await db.migrate(tmp_path)
    assert await db.fetch_value("select to_regclass('b') is null and to_regclass('c') is null")
    write(tmp_path, n0001_late="select 1")
    with pytest.raises(MigrationError, match=r"0001_late\.sql: comes before"):
        await db.migrate(tmp_path)
    (tmp_path / "0001_late.sql").unlink()
    write(tmp_path, n0002_a="create table other ()")
    with pytest.raises(MigrationError, match=r"0002_a\.sql: was edited"):
        await db.migrate(tmp_path)
    write(tmp_path, n0002_a="create table a ()", n0003_b="create table b ()")
    assert await db.migrate(tmp_path) == ["0003_b.sql", "0004_c.sql"]


async def test_a_file_may_hold_no_statement(db, tmp_path):
    """Empty, a note, a lone semicolon, a byte order mark: applied like any other; the same texts run as queries."""
    for number, text in enumerate(("", "-- note", ";", "/* /* why */ */ ;")):
        write(tmp_path, **{f"n000{number}_a": text, f"n001{number}_b": f"-- no-transaction\n{text}"})
        assert await db.execute(text) == ""
    (tmp_path / "0020_c.sql").write_bytes(b"\xef\xbb\xbfcreate table a ()")
    assert len(await db.migrate(tmp_path)) == 9
    assert db.stats().closed_dirty == 0


@pytest.mark.parametrize("word", ["commit", "begin", "start transaction", "rollback", "end", "abort and chain"])
async def test_a_file_that_ends_its_transaction_is_refused(db, tmp_path, word):
    """By name and line, before anything runs: when the rest fails, the first half would stay without its entry."""
    harmless = "-- commit;\nsavepoint a; rollback to a; select case when true then 'begin;' end;"
    body = "create function f() returns int begin atomic select 1; end;"
    write(tmp_path, n0001_a="select 1", n0002_b=f"{harmless}\n{body}\n/* x */ {word}; select 1/0")
    with pytest.raises(MigrationError, match=rf"0002_b\.sql: line 4 says `{word[:17].removesuffix(' and chain')}`"):
        await db.migrate(tmp_path)
    problems = [m.problem[:6] for m in await db.migration_status(tmp_path)]
    assert problems == ["", "line 4"]
    write(tmp_path, n0002_b=harmless + body)
    assert await db.migrate(tmp_path) == ["0001_a.sql", "0002_b.sql"]


async def test_a_checksum_survives_another_kind_of_newline(db, tmp_path):
    """A checkout on Windows has other bytes and the same migration."""
    (tmp_path / "0001_a.sql").write_bytes(b"create table a ();\nselect 1;\n")
    await db.migrate(tmp_path)
    (tmp_path / "0001_a.sql").write_bytes(b"create table a ();\r\nselect 1;\r\n")
    assert await db.migrate(tmp_path) == []


async def test_files_that_are_none_are_named(db, tmp_path):
    """A wrong name, a doubled number, bytes that are no text, no directory: refused before anything is asked."""
    for files, problem in (
        ({"n1_a": "select 1"}, r"1_a\.sql: is not named NNNN"),
        ({"n0001_a": "select 1", "n0001_b": "select 1"}, r"0001_b\.sql: has the same number as 0001_a"),
    ):
        directory = tmp_path / problem[:3]
        directory.mkdir()
        with pytest.raises(MigrationError, match=problem):
            await db.migrate(write(directory, **files))
    (tmp_path / "0001_x.sql").write_bytes(b"select '\xff'")
    with pytest.raises(MigrationError, match=r"0001_x\.sql: cannot be read"):
        await db.migrate(tmp_path)
    with pytest.raises(MigrationError, match="is not a directory"):
        await db.migrate(tmp_path / "nowhere")
    assert await db.fetch_value("select to_regclass('aegis_migrations') is null")


async def test_without_a_transaction_statements_run_one_by_one(db, tmp_path):
    """CREATE INDEX CONCURRENTLY works; a failure names the statement and keeps those before it; then it can go on."""
    write(tmp_path, n0001_a="create table a (x int)")
    concurrently = "-- no-transaction\ncreate index concurrently a_x on a (x); -- so; what\nselect 1;"
    await db.migrate(write(tmp_path, n0002_b=concurrently))
    assert await db.fetch_value("select indisvalid from pg_index where indexrelid = 'a_x'::regclass")
    write(tmp_path, n0003_c="-- no-transaction\ninsert into a values (1);\nselect 1/0;\ninsert into a values (2)")
    with pytest.raises(MigrationError, match=r"0003_c\.sql: statement 2 of this file.*22012"):
        await db.migrate(tmp_path)
    assert [row["x"] for row in await db.fetch("select x from a")] == [1]
    assert [m.applied for m in await db.migration_status(tmp_path)] == [True, True, False]
    write(tmp_path, n0003_c="-- no-transaction\nbegin; insert into a values (2)")
    with pytest.raises(MigrationError, match=r"0003_c\.sql: leaves a transaction open"):
        await db.migrate(tmp_path)
    write(tmp_path, n0003_c="-- no-transaction\ninsert into a values (3)")
    assert await db.migrate(tmp_path) == ["0003_c.sql"]
    assert await db.fetch_value("show statement_timeout") == "30s"  # the borrowed connection was reset


def test_statements_end_at_semicolons_outside_of_text():
    """Not in quotes of any kind, nor in comments; empty ones are dropped."""
    sql = """-- no-transaction; really
    select ';', "a;b", $$;$$, $x$ ; $$ ; $x$, e'\\';' /* ; */;
    ; -- nothing
    select 2"""
    first, second = (statement.sql for statement in statements(sql))
    assert first.startswith("-- no-transaction; really")
    assert first.endswith("/* ; */")
    assert second.endswith("select 2")


async def test_the_wait_for_another_migrator_is_bounded(db, tmp_path):
    """Who holds the lock for too long is waited for no longer than asked."""
    write(tmp_path, n0001_a="create table a ()")
    async with db.transaction() as tx:
        await tx.execute(f"select pg_advisory_xact_lock({0x61656769})")
        started = time.monotonic()
        with pytest.raises(MigrationError, match=r"another process migrates for more than 0\.3 s"):
            await db.migrate(tmp_path, lock_timeout_s=0.3)
        assert time.monotonic() - started >= 0.3
    assert await db.migrate(tmp_path) == ["0001_a.sql"]


async def test_nothing_to_do_takes_no_lock(db, tmp_path):
    """A process that starts while another migrates something long finds its own files applied, and goes on."""
    write(tmp_path, n0001_a="create table a ()")
    await db.migrate(tmp_path)
    async with db.transaction() as tx:
        await tx.execute(f"select pg_advisory_xact_lock({0x61656769})")
        assert await db.migrate(tmp_path, lock_timeout_s=0.3) == []


async def test_a_lost_connection_names_the_file(db, tmp_path):
    """The server's process is killed in the middle: the error names the file; it is not entered; the lock is free."""
    write(tmp_path, n0001_a="create table a (); select pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(MigrationError, match=r"0001_a\.sql.*lost"):
        await db.migrate(tmp_path)
    assert not (await db.migration_status(tmp_path))[0].applied
    write(tmp_path, n0001_a="create table a ()")
    assert await db.migrate(tmp_path, lock_timeout_s=5) == ["0001_a.sql"]
    assert db.stats().active == 0


async def test_status_shows_what_is_applied_pending_refused_and_missing(db, tmp_path):
    """One record per file, with its time and its problem; nothing is created by looking."""
    write(tmp_path, n0001_a="select 1", n0002_b="select 2")
    assert [(m.name, m.applied) for m in await db.migration_status(tmp_path)] == [
        ("0001_a.sql", False),
        ("0002_b.sql", False),
    ]
    assert await db.fetch_value("select to_regclass('aegis_migrations') is null")
    await db.migrate(tmp_path)
    (tmp_path / "0001_a.sql").unlink()
    write(tmp_path, n0002_b="select 3", n0003_c="select 4")
    found = await db.migration_status(tmp_path)
    assert [(m.name, m.applied) for m in found] == [("0001_a.sql", True), ("0002_b.sql", True), ("0003_c.sql", False)]
    assert ["not in the directory" in found[0].problem, "edited" in found[1].problem, found[2].problem] == [
        True,
        True,
        "",
    ]
    assert found[0].applied_at.tzinfo is not None
    assert found[2].applied_at is None
