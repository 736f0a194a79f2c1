"""
The seam to asyncpg: the few things that the pool asks of a connection, and the driver's errors turned into ours.

Nothing else imports asyncpg, so another driver, or a pgbouncer in between, changes this file only.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlencode

import asyncpg

from aegis.config import DatabaseConfig, PostgresUrl, parse_postgres_url
from aegis.errors import AegisError, DatabaseLostError, DatabaseUnavailableError, QueryError

Conn = Any  # asyncpg ships no types; its connection stays inside this room
_CLOSE_TIMEOUT_S = 2.0
_RESET_TIMEOUT_S = 5.0
_SLACK_S = 2.0  # the server ends a statement; we do when even that does not arrive (a hung server, a dead link)
#: Everything of DISCARD ALL but the prepared statements, which the driver keeps; one message, one round trip.
_RESET = (
    "select pg_advisory_unlock_all(); close all; unlisten *; set session authorization default; reset all; "
    "discard temp; discard sequences"
)

#: When we vanish in the middle of a statement, the server looks for that while it works. PostgreSQL 14 and later, on
#: systems that can; others refuse the setting.
_OPTIONAL = {"client_connection_check_interval": "250"}


_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)


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
        self.config, self._wanted = config, wanted_of(config)
        self.address = self._wanted.address
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
        config, wanted = self.config, self._wanted
        settings = {"application_name": config.application_name}
        if not config.pgbouncer:  # it refuses settings that it cannot keep for each client
            settings |= {
                "statement_timeout": milliseconds(config.statement_timeout),
                "lock_timeout": milliseconds(config.lock_timeout),
                "idle_in_transaction_session_timeout": milliseconds(config.idle_in_transaction_timeout),
                **self.optional,
            }
            if "options" in wanted.options:
                settings["options"] = wanted.options["options"]
        hosts = list(wanted.hosts)
        if wanted.options.get("load_balance_hosts") == "random":
            random.shuffle(hosts)
        return await asyncpg.connect(
            dsn=f"postgresql://?{urlencode(wanted.tls)}" if wanted.tls else None,
            host=[host for host, _ in hosts] or None,
            port=[port for _, port in hosts] or None,
            user=wanted.user,
            password=wanted.password,
            passfile=wanted.options.get("passfile"),
            database=wanted.database,
            target_session_attrs=config.target_session_attrs,
            server_settings=settings,
            statement_cache_size=0 if config.pgbouncer else 100,
            command_timeout=config.statement_timeout + _SLACK_S if config.statement_timeout else None,
            timeout=3600.0,  # ours covers a second attempt as well
            connection_class=_Session,
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


def wanted_of(config: DatabaseConfig) -> PostgresUrl:
    """What to connect to: the URL where there is one, else the parts."""
    if config.embedded:
        raise DatabaseUnavailableError("embedded:", "it exists only while an `aegis.Runtime` runs, which starts it")
    if config.url is not None:
        return parse_postgres_url(config.url.get_secret_value())
    hosts = tuple((host, config.port) for host in config.host.split(","))
    password = None if config.password is None else config.password.get_secret_value()
    return PostgresUrl(hosts, config.user, password, config.name)


def milliseconds(seconds: float) -> str:
    """A duration as the server's settings take it; 0 stays no bound."""
    return str(round(seconds * 1000))


def in_sync(exc: BaseException) -> bool:
    """Whether client and server agree that the statement is over: an error of the server's, or one before sending."""
    return isinstance(exc, asyncpg.PostgresError | asyncpg.InterfaceError)


def ours(exc: BaseException, address: str, *, foreign: bool = False) -> BaseException:
    """
    The driver's error as one of ours; anything else as it is.

    With `foreign` the statement was fed by the caller's iterator, so errors that are not the driver's are the caller's.
    """
    if isinstance(exc, AegisError):
        return exc
    if isinstance(exc, _LOST):
        return DatabaseLostError(address, str(exc) or type(exc).__name__)
    if isinstance(exc, asyncpg.PostgresError):
        return QueryError(str(exc.sqlstate), str(exc))
    if isinstance(exc, asyncpg.InterfaceError):
        if "closed" in str(exc):
            return DatabaseLostError(address, str(exc))
        return QueryError("22000", str(exc))  # an argument the driver could not encode
    if foreign:
        return exc
    if isinstance(exc, TimeoutError):
        return DatabaseLostError(address, "the server did not answer, and did not end the statement in time either")
    if isinstance(exc, OSError):
        return DatabaseLostError(address, str(exc) or type(exc).__name__)
    return exc
