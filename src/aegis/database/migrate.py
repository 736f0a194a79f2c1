"""
Migrations: a directory of `NNNN_name.sql`, applied in order, once, whoever asks.

An advisory lock held on the connection makes processes take turns; it dies with its holder, unlike a lock row. Each
file runs in a transaction of its own together with its entry in `aegis_migrations`. Edited or late files are refused.
A file that begins with the line `-- no-transaction` runs statement by statement instead (CREATE INDEX CONCURRENTLY
needs that), and is entered when its last one is done.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from aegis.database._driver import Conn, ours
from aegis.database._sql import statements
from aegis.errors import DatabaseError, MigrationError

#: The migrations that come with aegis.
MIGRATIONS = Path(__file__).parent / "migrations"
OnFile: TypeAlias = Callable[[str], object]  # told the name of each file before it is applied
_NAME = re.compile(r"\d{4}_\w+\.sql")
_ALONE = re.compile(r"--\s*no-transaction\s*$", re.MULTILINE)
_LOCK = 0x61656769  # "aegi"
_POLL_S = 0.1
_FOREVER_S = 86400.0 * 365
_TABLE = (
    "create table if not exists aegis_migrations "
    "(name text primary key, checksum text not null, applied_at timestamptz not null default now())"
)
_ENTER = "insert into aegis_migrations (name, checksum) values ($1, $2)"


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: since when it is applied, what is odd about it, and whether `migrate` would refuse it for that."""

    name: str
    applied: bool
    applied_at: dt.datetime | None = None
    problem: str = ""
    refused: bool = False


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    sql: str
    checksum: str

    @property
    def alone(self) -> bool:
        """Whether it asks to run outside a transaction."""
        return _ALONE.match(self.sql) is not None


@dataclass(frozen=True, slots=True)
class _Entry:
    checksum: str
    applied_at: dt.datetime


def _read(path: str | Path) -> list[_File]:
    directory = Path(path)
    if not directory.is_dir():
        raise MigrationError(str(directory), "is not a directory")
    files: list[_File] = []
    for file in sorted(directory.glob("*.sql")):
        if not _NAME.fullmatch(file.name):
            raise MigrationError(file.name, "is not named NNNN_name.sql")
        if files and files[-1].name[:4] == file.name[:4]:
            raise MigrationError(file.name, f"has the same number as {files[-1].name}")
        try:
            sql = file.read_text("utf-8-sig")  # any newline is \n and a BOM none: checksums survive Windows
        except (OSError, UnicodeDecodeError) as exc:
            raise MigrationError(file.name, f"cannot be read: {exc}") from exc
        files.append(_File(file.name, sql, hashlib.sha256(sql.encode()).hexdigest()))
    return files


async def _applied(conn: Conn) -> dict[str, _Entry]:
    if await conn.fetchval("select to_regclass('aegis_migrations') is null"):
        return {}
    rows = await conn.fetch("select name, checksum, applied_at from aegis_migrations order by name")
    return {row["name"]: _Entry(row["checksum"], row["applied_at"]) for row in rows}


def _problem(file: _File, applied: dict[str, _Entry]) -> str:
    """Why this file is refused; empty: it is not."""
    known, newest = applied.get(file.name), max(applied, default="")
    if known is not None and known.checksum != file.checksum:
        return "was edited after it was applied; restore it and add a new file"
    if known is None and file.name < newest:
        return f"comes before {newest}, which is applied; give it a higher number"
    return _transaction_problem(file) if known is None and not file.alone else ""


def _transaction_problem(file: _File) -> str:
    """A file that commits by itself would stay half done when its rest fails."""
    for statement in statements(file.sql):
        if statement.control:
            remedy = "take that out, or let the file begin with the line `-- no-transaction`"
            return f"line {statement.line} says `{statement.control}`, but each file runs in one transaction; {remedy}"
    return ""


def _pending(files: list[_File], applied: dict[str, _Entry]) -> list[_File]:
    """What is left to apply; refuses what was edited after it was applied, comes too late, or commits by itself."""
    for file in files:
        if problem := _problem(file, applied):
            raise MigrationError(file.name, problem)
    return [file for file in files if file.name not in applied]


async def status(conn: Conn, path: str | Path) -> list[Migration]:
    """
    Every file of the directory, and every applied one that is not there; takes no lock.

    That one is missing is no error: an older release runs against a newer database when it is rolled back.
    """
    files = {file.name: file for file in await asyncio.to_thread(_read, path)}
    applied = await _applied(conn)
    found = []
    for name in sorted({*files, *applied}):
        entry = applied.get(name)
        refused = _problem(files[name], applied) if name in files else ""
        problem = refused if name in files else "is applied, but not in the directory"
        applied_at = entry.applied_at if entry else None
        found.append(Migration(name, entry is not None, applied_at, problem, bool(refused)))
    return found


async def migrate(conn: Conn, path: str | Path, lock_timeout_s: float, on_file: OnFile | None) -> list[str]:
    """Apply what is pending; returns the names of this call's files. The lock ends when the caller resets `conn`."""
    files = await asyncio.to_thread(_read, path)
    if not _pending(files, await _applied(conn)):
        return []
    await _lock(conn, path, lock_timeout_s)
    await conn.execute(_TABLE)
    pending = _pending(files, await _applied(conn))  # again: the holder before us may have done it
    for file in pending:
        if on_file is not None:
            on_file(file.name)
        await _apply(conn, file)
    return [file.name for file in pending]


async def _lock(conn: Conn, path: str | Path, timeout_s: float) -> None:
    """Asked again and again, not waited for in the server: CREATE INDEX CONCURRENTLY waits for whoever waits there."""
    deadline = time.monotonic() + timeout_s
    while not await conn.fetchval("select pg_try_advisory_lock($1)", _LOCK):
        if (left_s := deadline - time.monotonic()) <= 0:
            raise MigrationError(str(path), f"another process migrates for more than {timeout_s:g} s")
        await asyncio.sleep(min(_POLL_S, left_s))


async def _apply(conn: Conn, file: _File) -> None:
    run = _apply_alone if file.alone else _apply_whole
    try:
        await run(conn, file)
    except MigrationError:
        raise
    except Exception as exc:
        mine = ours(exc, "the migrated server")
        if isinstance(mine, DatabaseError):
            raise MigrationError(file.name, str(mine)) from exc
        raise


async def _apply_whole(conn: Conn, file: _File) -> None:
    async with conn.transaction():
        await conn.execute("set local statement_timeout = 0", timeout=_FOREVER_S)  # an index takes its time
        await conn.execute(file.sql, timeout=_FOREVER_S)
        await conn.execute(_ENTER, file.name, file.checksum)


async def _apply_alone(conn: Conn, file: _File) -> None:
    await conn.execute("set statement_timeout = 0; set lock_timeout = 0")  # the connection is reset afterwards
    for number, statement in enumerate(statements(file.sql), 1):
        try:
            await conn.execute(statement.sql, timeout=_FOREVER_S)
        except Exception as exc:
            mine = ours(exc, "the migrated server")
            done = f"statement {number} of this file, which runs without a transaction; those before it stay done"
            raise MigrationError(file.name, f"{done}: {mine}") from exc
    if conn.is_in_transaction():
        raise MigrationError(file.name, "leaves a transaction open, which is rolled back; end it with `commit`")
    await conn.execute(_ENTER, file.name, file.checksum)
