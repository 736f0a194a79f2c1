"""Open one link: connect, TLS, log in, choose the database, name the connection; all within one timeout."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any

import hiredis

from aegis.config import RedisConfig
from aegis.errors import RedisUnavailableError
from aegis.redis.connection.link import Limits, Link, pack
from aegis.redis.connection.stats import Counters
from aegis.redis.connection.waiters import LinkLostError


def limits_of(config: RedisConfig, *, idle_ping: bool = False) -> Limits:
    """The bounds that the configuration sets."""
    return Limits(
        command_timeout_s=config.command_timeout,
        hang_timeout_s=config.hang_timeout,
        in_flight_max=config.max_in_flight,
        in_flight_bytes_max=config.max_in_flight_bytes,
        reply_bytes_max=config.max_reply_bytes,
        idle_ping=idle_ping,
    )


async def open_link(
    config: RedisConfig,
    on_lost: Callable[[str], None],
    on_push: Callable[[list[Any]], None] | None = None,
    *,
    on_room: Callable[[], None] | None = None,
    counters: Counters | None = None,
    idle_ping: bool = False,
    primary: bool = False,
) -> Link:
    """
    Connect and log in, within `config.connect_timeout`. `on_lost` is not called for a link that never opened.

    Raises:
        RedisUnavailableError: refused, not found, too slow, the server refused the login, or it should be a primary
            and is not.
    """
    loop = asyncio.get_running_loop()
    opened = False

    def lost(reason: str) -> None:
        if opened:
            on_lost(reason)

    link = Link(lost, on_push, on_room=on_room, limits=limits_of(config, idle_ping=idle_ping), counters=counters)
    try:
        async with asyncio.timeout(config.connect_timeout):
            if config.socket:
                await loop.create_unix_connection(lambda: link, config.socket)
            else:
                context = tls_context(config) if config.tls else None
                await loop.create_connection(lambda: link, config.host, config.port, ssl=context)
            await _log_in(link, config)
            if primary:
                await _check_role(link, config)
    except TimeoutError as exc:
        link.abort("connect timeout")
        raise RedisUnavailableError(config.address, f"no answer within {config.connect_timeout:g} s") from exc
    except RedisUnavailableError:
        link.abort("login refused")
        raise
    except (OSError, ValueError) as exc:  # ValueError: a host name that cannot be encoded
        link.abort("connect failed")
        raise RedisUnavailableError(config.address, why(exc)) from exc
    except BaseException:
        link.abort("connect abandoned")
        raise
    if link.closed_because:
        raise RedisUnavailableError(config.address, link.closed_because)
    opened = True
    return link


async def _log_in(link: Link, config: RedisConfig) -> None:
    commands: list[tuple[str | int, ...]] = []
    if config.password is not None:
        user = (config.username,) if config.username else ()
        commands.append(("AUTH", *user, config.password.get_secret_value()))
    if config.db:
        commands.append(("SELECT", config.db))
    commands.append(("CLIENT", "SETNAME", config.client_name))
    commands.append(("PING",))
    replies = await asyncio.gather(*(link.send(pack(command)) for command in commands), return_exceptions=True)
    for command, reply in zip(commands, replies, strict=True):
        if isinstance(reply, hiredis.ReplyError):
            if command[0] != "CLIENT":  # a name is a convenience: no reason to stay away
                raise RedisUnavailableError(config.address, f"{command[0]} refused: {reply}")
        elif isinstance(reply, BaseException):
            raise reply


async def _check_role(link: Link, config: RedisConfig) -> None:
    role = await link.send(pack(("ROLE",)))
    if isinstance(role, list) and role[0] != b"master":
        raise RedisUnavailableError(config.address, "it is a replica now; the Sentinels have not agreed on another yet")


def why(exc: OSError | ValueError) -> str:
    """The cause of a failed connection, in words; asyncio's own say "Connect call failed" for everything."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"TLS certificate not accepted: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        return f"TLS failed: {exc.reason or exc}"
    if isinstance(exc, socket.gaierror):
        return f"host name cannot be resolved: {exc.strerror}"
    if isinstance(exc, LinkLostError):
        return f"connection lost during login: {exc}"
    if isinstance(exc, OSError) and exc.errno:
        return os.strerror(exc.errno).lower()
    return str(exc) or type(exc).__name__


def tls_context(config: RedisConfig) -> ssl.SSLContext:
    """
    Verify the server's certificate and host name; show our own certificate where one is configured.

    Raises:
        RedisUnavailableError: a certificate file cannot be used; it is named.
    """
    try:
        context = ssl.create_default_context(cafile=config.tls_ca_file)
        if config.tls_cert_file and config.tls_key_file:
            context.load_cert_chain(config.tls_cert_file, config.tls_key_file)
    except OSError as exc:
        files = [str(file) for file in (config.tls_ca_file, config.tls_cert_file, config.tls_key_file) if file]
        raise RedisUnavailableError(config.address, f"cannot use {' or '.join(files)}: {exc}") from exc
    return context
