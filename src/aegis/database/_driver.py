"""The seam to asyncpg: opening a connection, and turning the driver's errors into ours. Nothing else imports it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg

from aegis.config import DatabaseConfig
from aegis.errors import DatabaseError, DatabaseLostError, DatabaseUnavailableError, QueryError

Conn = Any  # asyncpg ships no types; its connection stays inside this room


def address_of(config: DatabaseConfig) -> str:
    """Where the server is, for messages: never holds a user's secret."""
    if config.url is None:
        return f"{config.host}:{config.port}/{config.name}"
    split = urlsplit(config.url.get_secret_value())
    host = split.netloc.rpartition("@")[2] or ",".join(parse_qs(split.query).get("host", ["localhost"]))
    return f"{host}{split.path}"


async def connect(config: DatabaseConfig) -> Conn:
    """
    Open one connection within `config.connect_timeout`, with the server-side bounds set.

    Raises:
        DatabaseUnavailableError: names the address and the cause, never the password.
    """
    settings = {
        "application_name": "aegis",
        "statement_timeout": str(int(config.statement_timeout * 1000)),
        # We close the socket of a cancelled statement; the server (14 and later) looks for that while it works.
        "client_connection_check_interval": "250",
    }
    if config.url is not None:
        where: dict[str, Any] = {"dsn": config.url.get_secret_value()}
    else:
        where = {"host": config.host, "port": config.port, "user": config.user, "database": config.name}
    if config.url is None and config.password is not None:
        where["password"] = config.password.get_secret_value()
    try:
        return await asyncpg.connect(**where, timeout=config.connect_timeout, server_settings=settings)
    except TimeoutError as exc:
        cause = f"no answer within {config.connect_timeout:.1f} s"
        raise DatabaseUnavailableError(address_of(config), cause) from exc
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as exc:
        raise DatabaseUnavailableError(address_of(config), str(exc) or type(exc).__name__) from exc


@contextmanager
def translated(conn: Conn, address: str) -> Iterator[None]:
    """Raise the driver's errors as ours, with the original chained; a caller's own errors pass untouched."""
    try:
        yield
    except DatabaseError:
        raise  # ours already; DatabaseLostError is an OSError too and must not be translated twice
    except (asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, asyncpg.CrashShutdownError, OSError) as exc:
        if isinstance(exc, OSError) and not conn.is_closed():
            raise  # the caller's, say from the iterator that feeds COPY
        raise DatabaseLostError(address, str(exc) or type(exc).__name__) from exc
    except asyncpg.PostgresError as exc:
        raise QueryError(str(exc.sqlstate), str(exc)) from exc
    except asyncpg.InterfaceError as exc:
        if "closed" in str(exc):
            raise DatabaseLostError(address, str(exc)) from exc
        raise QueryError("22000", str(exc)) from exc  # an argument the driver could not encode
