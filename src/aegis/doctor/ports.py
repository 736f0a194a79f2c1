"""What this process will want: ports to listen on, and open files."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator

from aegis.config import Config
from aegis.doctor.finding import Area, Finding, Verdict

_AREA = Area("ports")
#: Beside connections: files, pipes, libraries.
_OTHER_FILES = 128
_ANSWER_TIMEOUT_S = 2.0
_ANSWER_BYTES_MAX = 1024 * 1024


async def examine_ports(config: Config) -> AsyncIterator[Finding]:
    """Whether PORT and METRICS_PORT are free on the loopback, and enough files may be open."""
    yield _port("PORT", config.port)
    if config.metrics.enabled:
        taken = _port("METRICS_PORT", config.metrics.port)
        ours = taken.verdict is Verdict.FAILED and await _serves_our_metrics(config.metrics.port)
        yield _AREA.ok("METRICS_PORT", f"{config.metrics.port}, shared with others of aegis") if ours else taken
        if config.metrics.port == config.port != 0:
            yield _AREA.failed("METRICS_PORT", f"{config.port}, as PORT", "give them different numbers")
    else:
        yield _AREA.skipped("METRICS_PORT", "METRICS_ENABLED=false")
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = config.http.max_connections + config.database.max_conns + _OTHER_FILES
    remedy = f"raise it (ulimit -n {2 * wanted}), or lower HTTP_MAX_CONNECTIONS or DB_MAX_CONNS"
    yield _AREA.judged("open files", f"{allowed} allowed, up to {wanted} used", allowed < wanted, remedy)


async def _serves_our_metrics(port: int) -> bool:
    """Whether whoever listens there is a process of ours: those of one host share the port."""
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
                answer = b""
                while b"aegis_" not in answer and len(answer) < _ANSWER_BYTES_MAX:
                    piece = await reader.read(65_536)
                    if not piece:
                        return False
                    answer += piece
                return b"aegis_" in answer
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError):
        return False


def _port(variable: str, port: int) -> Finding:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
    except OSError as exc:
        remedy = f"set {variable} to another port, or end what listens there (ss -ltnp 'sport = :{port}')"
        return _AREA.failed(variable, f"{port}: {exc.strerror}", remedy)
    return _AREA.ok(variable, f"{port} is free" if port else "any free one")
