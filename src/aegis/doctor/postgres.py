"""The database: reachable, writable, room for our connections, migrated, and of one mind about time and text."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from aegis.config import DatabaseConfig
from aegis.database import Database
from aegis.doctor.finding import Area, Finding
from aegis.embedded.postgres import postgres_home
from aegis.errors import DatabaseError, DatabaseUnavailableError, MigrationError, ServerStartError

_AREA = Area("postgres")
_PINGS = 10
_SLOW_S = 0.01
_OLDEST = 150_000  #: PostgreSQL 14 had its last fixes on 2026-11-12 (postgresql.org/support/versioning)
_CLOCK_OFFSET_S_MAX = 1.0
_ZONES = frozenset({"UTC", "Etc/UTC", "GMT", "Asia/Seoul", "ROK"})

_SERVER = """
select current_setting('server_version_num')::int as number, current_setting('server_version') as version,
    pg_is_in_recovery() as standby, current_setting('TimeZone') as zone, current_setting('server_encoding') as encoding,
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int as most,
    (select count(*)::int from pg_stat_activity where backend_type = 'client backend') as used,
    (select rolconnlimit from pg_roles where rolname = current_user) as own_most,
    has_schema_privilege(current_schema(), 'CREATE') as may_create, current_schema() as schema,
    extract(epoch from clock_timestamp())::float8 as now
"""


async def examine_postgres(config: DatabaseConfig) -> AsyncIterator[Finding]:
    """Connects once; writes nothing."""
    if config.embedded:
        yield _embedded()
        return
    small = config.model_copy(update={"min_conns": 1, "max_conns": 1, "replica_url": None})
    try:
        async with Database(small) as database:
            async for finding in _connected(database, config):
                yield finding
    except DatabaseUnavailableError as exc:
        yield _AREA.failed("connection", f"{exc.address}: {exc.cause}", _remedy(exc.cause))
    except DatabaseError as exc:
        yield _AREA.failed("connection", str(exc), "it failed during this look: see the server's log")


def _embedded() -> Finding:
    try:
        return _AREA.ok("connection", f"embedded: each process starts its own, from {postgres_home()}")
    except ServerStartError as exc:
        return _AREA.failed("connection", "DATABASE_URL=embedded:, but the server is not installed", exc.reason)


def _remedy(cause: str) -> str:
    text = cause.lower()
    if "password" in text or "authentication" in text or "role" in text:
        return "set DB_USER and DB_PASSWORD (or DATABASE_URL) to what the server knows"
    if "database" in text and "exist" in text:
        return "create it (createdb), or set DB_NAME"
    if "too many" in text or "slots" in text:
        return "lower DB_MAX_CONNS of every process, raise max_connections, or put pgbouncer in between"
    if "ssl" in text or "certificate" in text:
        return "sslmode= and sslrootcert= in DATABASE_URL say whether and how the server is trusted"
    if "name" in text or "resolve" in text:
        return "DB_HOST cannot be resolved from here: check the name and the network"
    return "start the server, or set DATABASE_URL or DB_HOST and DB_PORT; `aegis up` starts one to try things out"


async def _connected(database: Database, config: DatabaseConfig) -> AsyncIterator[Finding]:
    yield _AREA.ok("connection", f"{config.host}:{config.port}/{config.name}")
    taken = sorted([await database.ping() for _ in range(_PINGS)])
    seen = f"{taken[_PINGS // 2] * 1e3:.2f} ms median, {taken[-1] * 1e3:.2f} ms worst of {_PINGS}"
    yield _AREA.judged("latency", seen, taken[_PINGS // 2] > _SLOW_S, "run the processes near the server")
    before = time.time()
    server = await database.fetch_one(_SERVER)
    assert server is not None
    midway = (before + time.time()) / 2
    yield _AREA.judged("version", server["version"], server["number"] < _OLDEST, "upgrade: it gets no more fixes")
    if server["standby"]:
        yield _AREA.failed("role", "a standby: it refuses every write", "DB_TARGET_SESSION_ATTRS=read-write, all hosts")
    else:
        yield _AREA.ok("role", "primary")
    yield _connections(server["most"], server["used"], server["own_most"], config.max_conns)
    yield await _migrations(database)
    if not server["may_create"]:
        remedy = f"grant create on schema {server['schema']}, or migrate with another user"
        yield _AREA.warning("schema", f"no right to create in {server['schema']}", remedy)
    zone = server["zone"]
    remedy = "alter database ... set timezone to 'UTC': a date of a timestamp is another one elsewhere"
    yield _AREA.judged("time zone", zone, zone not in _ZONES, remedy)
    offset = float(server["now"]) - midway
    late = abs(offset) > _CLOCK_OFFSET_S_MAX
    yield _AREA.judged("clock", f"{offset:+.3f} s from this machine's", late, "set both with NTP")
    encoding = server["encoding"]
    yield _AREA.judged("encoding", encoding, encoding != "UTF8", "create the database with encoding UTF8")


def _connections(most: int, used: int, own_most: int, wanted: int) -> Finding:
    left = most - used if own_most < 0 else min(most - used, own_most)
    seen = f"{left} of {most} left, DB_MAX_CONNS={wanted} for each process"
    remedy = "lower DB_MAX_CONNS, raise max_connections, or put pgbouncer in between (DB_PGBOUNCER=true)"
    return _AREA.judged("connections", seen, left < wanted, remedy)


async def _migrations(database: Database) -> Finding:
    try:
        files = await database.migration_status()
    except MigrationError as exc:
        return _AREA.failed("migrations", str(exc), "restore the file, or see docs/database.md")
    except DatabaseError as exc:
        return _AREA.warning("migrations", str(exc), "grant select on aegis_migrations to the user")
    pending = [file.name for file in files if not file.applied]
    if not pending:
        return _AREA.ok("migrations", f"all {len(files)} are applied")
    return _AREA.warning("migrations", f"{len(pending)} pending: {', '.join(pending)}", "run `aegis db migrate`")
