"""
The seam to asyncpg: the few things that the pool asks of a connection, and the driver's errors turned into ours.

Nothing else imports asyncpg, so another driver, or a pgbouncer in between, changes this file only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlencode

import asyncpg

from aegis.config import DatabaseConfig, PostgresUrl, parse_postgres_url
from aegis.database._hosts import Hosts, Place
from aegis.database._sql import statements
from aegis.errors import AegisError, DatabaseLostError, DatabaseUnavailableError, QueryError

Conn = Any  # asyncpg ships no types; its connection stays inside this room
_CLOSE_TIMEOUT_S = 2.0
_RESET_TIMEOUT_S = 5.0
_SLACK_S = 2.0  # the server ends a statement; we do when even that does not arrive (a hung server, a dead link)
_LONGEST_S = 2_147_483  # the server counts milliseconds in 31 bits
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
    asyncpg.InternalClientError,  # its state machine met what it does not expect: the last words of a dying server
)


class Driver(Protocol):
    """What the pool needs. Every method may be cancelled; a connection that was interrupted is never used again."""

    address: str  #: for messages; holds no secret

    async def connect(self) -> Conn:
        """Open one, or raise DatabaseUnavailableError."""

    async def ping(self, conn: Conn) -> None:
        """One round trip."""

    async def reset(self, conn: Conn) -> None:
        """Remove what a borrower left behind in the session."""

    async def close(self, conn: Conn) -> None:
        """Stop what it runs and say goodbye; when this returns the server has let go, or a bound is reached."""


class _Session(asyncpg.Connection):  # type: ignore[misc] # asyncpg ships no types
    """asyncpg's connection with our reset, and with a note of a COMMIT that no synchronous standby confirmed."""

    unconfirmed = False

    def get_reset_query(self) -> str:
        return _RESET

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> Any:
        """The server's tag. A text without any statement has none, which asyncpg does not expect."""
        try:
            return await super().execute(query, *args, timeout=timeout)
        except AttributeError:
            if any(statements(query)):
                raise
            return ""


class AsyncpgDriver:
    """Connections to the server of one `DatabaseConfig`."""

    def __init__(self, config: DatabaseConfig, optional: Mapping[str, str] = _OPTIONAL) -> None:
        self.config, self._wanted = config, wanted_of(config)
        self._hosts = Hosts(config, self._wanted)
        self.address = self._wanted.address
        self.optional = dict(optional)  #: settings that a server may refuse; what one refused is not sent again

    async def connect(self) -> Conn:
        """
        Open one connection within `connect_timeout`, with the server-side bounds set.

        Raises:
            DatabaseUnavailableError: names the address and the cause, never the password.
        """
        places, causes, last = self._hosts.plan(), [], None
        deadline = time.monotonic() + self.config.connect_timeout
        for done, place in enumerate(places):
            bound_s = (deadline - time.monotonic()) / (len(places) - done)  # a host that hangs leaves time for the next
            try:
                async with asyncio.timeout(bound_s):
                    conn = await self._connect(place)
            except Exception as exc:  # noqa: BLE001 - whatever the driver raises, there is no connection
                last = exc
                cause = f"no answer within {bound_s:.1f} s" if isinstance(exc, TimeoutError) else str(exc)
                causes.append(
                    f"{place}: {cause or type(exc).__name__}" if len(places) > 1 else cause or type(exc).__name__
                )
            else:
                self._hosts.fits(place)
                return conn
        raise DatabaseUnavailableError(self.address, "; ".join(causes)) from last

    async def _connect(self, place: Place) -> Conn:
        while True:
            try:
                conn = await self._log_in(place)
            except asyncpg.PostgresError as exc:
                refused = [name for name in self.optional if name in str(exc)]
                if not refused:
                    raise
                del self.optional[refused[0]]
            else:
                conn.add_log_listener(_note)
                return conn

    async def _log_in(self, place: Place) -> Conn:
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
        return await asyncpg.connect(
            dsn=f"postgresql://?{urlencode(wanted.tls)}" if wanted.tls else None,
            host=place.host,
            port=place.port,
            user=wanted.user,
            password=wanted.password,
            passfile=wanted.options.get("passfile"),
            database=wanted.database,
            target_session_attrs=place.attrs,
            server_settings=settings,
            statement_cache_size=0 if config.pgbouncer else 100,
            command_timeout=config.statement_timeout + _SLACK_S if config.statement_timeout else None,
            timeout=3600.0,  # ours covers a second attempt as well
            connection_class=_Session,
        )

    async def ping(self, conn: Conn) -> None:
        """Ask for the smallest result (the driver raises on the answer to an empty query); the caller bounds it."""
        await conn.execute("select 1")

    async def reset(self, conn: Conn) -> None:
        """Listeners, settings, locks, temporary tables and cursors of a borrower end here."""
        await conn.reset(timeout=_RESET_TIMEOUT_S)
        conn.add_log_listener(_note)  # the driver's own part of the reset removes them all

    async def close(self, conn: Conn) -> None:
        """Cancel a running statement at the server, then part; after two seconds, cut."""
        try:
            await conn.close(timeout=_CLOSE_TIMEOUT_S)
        except Exception:  # noqa: BLE001 - it was to go anyway
            conn.terminate()
        except asyncio.CancelledError:
            conn.terminate()
            raise


def _note(conn: Conn, message: Any) -> None:
    """
    Hear the one warning that takes a promise back.

    A COMMIT that waits for a synchronous standby can be cancelled (pg_cancel_backend). The server then answers COMMIT,
    with a warning: the transaction is stored here, and nowhere else, so a failover would lose it. The warning has no
    code of its own; it is known by the function that raises it, whatever the server's language.
    """
    if getattr(message, "server_source_function", "") == "SyncRepWaitForLSN":
        conn.unconfirmed = True


def wanted_of(config: DatabaseConfig) -> PostgresUrl:
    """What to connect to: the URL where there is one, else the parts."""
    if config.embedded:
        raise DatabaseUnavailableError("embedded:", "it exists only while an `aegis.Runtime` runs, which starts it")
    if config.url is not None:
        return parse_postgres_url(config.url.get_secret_value())
    hosts = tuple((host, config.port) for host in config.host.split(","))
    password = None if config.password is None else config.password.get_secret_value()
    return PostgresUrl(hosts, config.user, password, config.name)


def checked(name: str, seconds: object, least: float = 0.0) -> None:
    """Refuse what is no duration for the server and for the loop, by the argument's name."""
    if not isinstance(seconds, int | float) or not least <= seconds <= _LONGEST_S:
        raise ValueError(f"{name}={seconds!r} is not a number of seconds from {least:g} to {_LONGEST_S}")


def milliseconds(seconds: float) -> str:
    """A duration as the server's settings take it; 0 stays no bound."""
    return str(round(seconds * 1000))


def sqlstate_of(exc: BaseException | None) -> str:
    """The server's code for what it refused; empty for anything else, such as the driver's own use of these classes."""
    return str(exc.sqlstate) if isinstance(exc, asyncpg.PostgresError) and exc.severity else ""


def was_not_sent(exc: BaseException) -> bool:
    """Whether the driver could not encode an argument: it then raises the server's class for that, in its own name."""
    return isinstance(exc, asyncpg.DataError) and not sqlstate_of(exc)


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
