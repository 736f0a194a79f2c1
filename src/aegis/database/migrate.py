"""
Migrations: a directory of `NNNN_name.sql`, applied in order, once, whoever asks.

An advisory lock held on the connection makes processes take turns; it dies with its holder, unlike a lock row. Each
file runs in a transaction of its own together with its entry in `aegis_migrations`. Edited or late files are refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from aegis.database._driver import Conn, ours
from aegis.errors import MigrationError, QueryError

#: The migrations that come with aegis.
MIGRATIONS = Path(__file__).parent / "migrations"
_NAME = re.compile(r"\d{4}_\w+\.sql")
_LOCK = 0x61656769  # "aegi"
_POLL_S = 0.1
_FOREVER_S = 86400.0 * 365


@dataclass(frozen=True, slots=True)
class Migration:
    """One file and whether it is applied."""

    name: str
    applied: bool


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    sql: str
    checksum: str


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
        text = file.read_bytes()
        files.append(_File(file.name, text.decode(), hashlib.sha256(text).hexdigest()))
    return files


async def _applied(conn: Conn) -> dict[str, str]:
    if await conn.fetchval("select to_regclass('aegis_migrations') is null"):
        return {}
    return {row[0]: row[1] for row in await conn.fetch("select name, checksum from aegis_migrations")}


def _pending(files: list[_File], applied: dict[str, str]) -> list[_File]:
    """What is left to apply; refuses a file that was edited after it was applied, or that comes too late."""
    newest = max(applied, default="")
    for file in files:
        known = applied.get(file.name)
        if known is not None and known != file.checksum:
            raise MigrationError(file.name, "was edited after it was applied; restore it and add a new file")
        if known is None and file.name < newest:
            raise MigrationError(file.name, f"comes before {newest}, which is applied; give it a higher number")
    return [file for file in files if file.name not in applied]


async def status(conn: Conn, path: str | Path) -> list[Migration]:
    """Every file of the directory and whether it is applied; takes no lock."""
    files = await asyncio.to_thread(_read, path)
    applied = await _applied(conn)
    return [Migration(file.name, file.name in applied) for file in files]


async def migrate(conn: Conn, path: str | Path, lock_timeout_s: float) -> list[str]:
    """Apply what is pending; returns the names of the files that this call applied."""
    files = await asyncio.to_thread(_read, path)
    if not _pending(files, await _applied(conn)):
        return []
    try:
        async with asyncio.timeout(lock_timeout_s):
            while not await conn.fetchval("select pg_try_advisory_lock($1)", _LOCK):  # noqa: ASYNC110 - the event is in another process
                await asyncio.sleep(_POLL_S)
    except TimeoutError as exc:
        raise MigrationError(str(path), f"another process migrates for more than {lock_timeout_s:.0f} s") from exc
    try:
        await conn.execute(
            "create table if not exists aegis_migrations "
            "(name text primary key, checksum text not null, applied_at timestamptz not null default now())"
        )
        pending = _pending(files, await _applied(conn))  # again: the holder before us may have done it
        for file in pending:
            await _apply(conn, file)
        return [file.name for file in pending]
    finally:
        if not conn.is_closed():
            await conn.execute(f"select pg_advisory_unlock({_LOCK})")


async def _apply(conn: Conn, file: _File) -> None:
    try:
        async with conn.transaction():
            await conn.execute("set local statement_timeout = 0", timeout=_FOREVER_S)  # an index takes its time
            await conn.execute(file.sql, timeout=_FOREVER_S)
            await conn.execute(
                "insert into aegis_migrations (name, checksum) values ($1, $2)", file.name, file.checksum
            )
    except Exception as exc:
        mine = ours(exc, "the migrated server")
        if isinstance(mine, QueryError):
            raise MigrationError(file.name, str(mine)) from exc
        raise
