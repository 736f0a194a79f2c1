"""
The seam to asyncpg: the few things that the pool asks of a connection, and the driver's errors turned into ours.

Nothing else imports asyncpg, so another driver, or a pgbouncer in between, changes this file only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import asyncpg

from aegis.config import DatabaseConfig
from aegis.errors import DatabaseError, DatabaseLostError, DatabaseUnavailableError, QueryError

Conn = Any  # asyncpg ships no types; its connection stays inside this room
_CLOSE_TIMEOUT_S = 2.0
_RESET_TIMEOUT_S = 5.0
#: Everything of DISCARD ALL but the prepared statements, which the driver keeps; one message, one round trip.
_RESET = (
    "select pg_advisory_unlock_all(); close all; unlisten *; set session authorization default; reset all; "
    "discard temp; discard sequences"
)

#: When we vanish in the middle of a statement, the server looks for that while it works. PostgreSQL 14 and later, on
#: systems that can; others refuse the setting.
_OPTIONAL = {"client_connection_check_interval": "250"}


class Driver(Protocol):
    """What the pool needs. Every method may be cancelled; a connection that was interrupted is never used again."""

    address: str  #: for messages; holds no secret

    async def connect(self) -> Conn:
        """Open one, or raise DatabaseUnavailableError."""

    async def ping(self, conn: Conn) -> None:
        """One empty round trip."""

    async def reset(self, conn: Conn) -> None:
        """Remove what a borrower left behind in the session."""

    async def close(self, conn: Conn) -> None:
        """Stop what it runs and say goodbye; when this returns the server has let go, or a bound is reached."""


class _Session(asyncpg.Connection):  # type: ignore[misc] # asyncpg ships no types
    """asyncpg's connection with our reset."""

    def get_reset_query(self) -> str:
        return _RESET


class AsyncpgDriver:
    """Connections to the server of one `DatabaseConfig`."""

    def __init__(self, config: DatabaseConfig, optional: Mapping[str, str] = _OPTIONAL) -> None:
        self.config, self.address = config, address_of(config)
        self.optional = dict(optional)  #: settings that a server may refuse; what one refused is not sent again

    async def connect(self) -> Conn:
        """
        Open one connection within `connect_timeout`, with the server-side bounds set.

        Raises:
            DatabaseUnavailableError: names the address and the cause, never the password.
        """
        try:
            async with asyncio.timeout(self.config.connect_timeout):
                while True:
                    try:
                        return await self._connect()
                    except asyncpg.PostgresError as exc:
                        refused = [name for name in self.optional if name in str(exc)]
                        if not refused:
                            raise
                        del self.optional[refused[0]]
        except TimeoutError as exc:
            cause = f"no answer within {self.config.connect_timeout:.1f} s"
            raise DatabaseUnavailableError(self.address, cause) from exc
        except Exception as exc:  # whatever the driver raises, there is no connection
            raise DatabaseUnavailableError(self.address, str(exc) or type(exc).__name__) from exc

    async def _connect(self) -> Conn:
        settings = {
            "application_name": "aegis",
            "statement_timeout": str(int(self.config.statement_timeout * 1000)),
            **self.optional,
        }
        # Its own timeout is off: ours covers a second attempt as well.
        return await asyncpg.connect(
            **_where(self.config), timeout=3600.0, server_settings=settings, connection_class=_Session
        )

    async def ping(self, conn: Conn) -> None:
        """An empty query; the caller bounds it."""
        await conn.execute("")

    async def reset(self, conn: Conn) -> None:
        """Listeners, settings, locks, temporary tables and cursors of a borrower end here."""
        await conn.reset(timeout=_RESET_TIMEOUT_S)

    async def close(self, conn: Conn) -> None:
        """Cancel a running statement at the server, then part; after two seconds, cut."""
        try:
            await conn.close(timeout=_CLOSE_TIMEOUT_S)
        except Exception:  # noqa: BLE001 - it was to go anyway
            conn.terminate()
        except asyncio.CancelledError:
            conn.terminate()
            raise


def address_of(config: DatabaseConfig) -> str:
    """Where the server is, for messages: never holds a user's secret."""
    if config.url is None:
        return f"{config.host}:{config.port}/{config.name}"
    split = urlsplit(config.url.get_secret_value())
    host = split.netloc.rpartition("@")[2] or ",".join(parse_qs(split.query).get("host", ["localhost"]))
    return f"{host}{split.path}"


def _where(config: DatabaseConfig) -> dict[str, Any]:
    if config.url is not None:
        return {"dsn": config.url.get_secret_value()}
    where: dict[str, Any] = {"host": config.host, "port": config.port, "user": config.user, "database": config.name}
    if config.password is not None:
        where["password"] = config.password.get_secret_value()
    return where


def in_sync(exc: BaseException) -> bool:
    """Whether client and server agree that the statement is over: an error of the server's, or one before sending."""
    return isinstance(exc, asyncpg.PostgresError | asyncpg.InterfaceError)


def ours(exc: BaseException, conn: Conn, address: str) -> BaseException:
    """The driver's error as one of ours; anything else as it is."""
    if isinstance(exc, DatabaseError):
        return exc  # ours already; DatabaseLostError is an OSError too and must not be translated twice
    if isinstance(exc, asyncpg.PostgresConnectionError | asyncpg.AdminShutdownError | asyncpg.CrashShutdownError):
        return DatabaseLostError(address, str(exc) or type(exc).__name__)
    if isinstance(exc, asyncpg.PostgresError):
        return QueryError(str(exc.sqlstate), str(exc))
    if isinstance(exc, asyncpg.InterfaceError):
        if "closed" in str(exc):
            return DatabaseLostError(address, str(exc))
        return QueryError("22000", str(exc))  # an argument the driver could not encode
    if isinstance(exc, OSError) and conn.is_closed():  # else the caller's, say from the iterator that feeds COPY
        return DatabaseLostError(address, str(exc) or type(exc).__name__)
    return exc


@contextmanager
def translated(conn: Conn, address: str) -> Iterator[None]:
    """Raise the driver's errors as ours, with the original chained; a caller's own errors pass untouched."""
    try:
        yield
    except Exception as exc:
        mine = ours(exc, conn, address)
        if mine is exc:
            raise
        raise mine from exc
