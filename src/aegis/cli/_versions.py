"""What `aegis --version` says: the versions to put into a bug report."""

from __future__ import annotations

import platform
import ssl
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from aegis.errors import ServerStartError

_PACKAGES = ("redis", "hiredis", "asyncpg", "aiohttp", "msgspec", "pydantic", "uvloop")
_SERVER_TIMEOUT_S = 5.0


def version_lines() -> Iterator[str]:
    """One line for aegis, then one for each part that it stands on."""
    yield f"aegis {version('aegis-infra')} (Python {platform.python_version()}, {platform.platform(terse=True)})"
    yield f"  {ssl.OPENSSL_VERSION}"
    for package in _PACKAGES:
        yield f"  {package} {_installed(package)}"
    yield f"  embedded Valkey {_server_version('valkey')}"
    yield f"  embedded PostgreSQL {_server_version('postgres')}"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _server_version(server: str) -> str:
    from aegis.embedded.postgres import postgres_home  # noqa: PLC0415
    from aegis.embedded.valkey import valkey_binary  # noqa: PLC0415

    try:
        binary = valkey_binary() if server == "valkey" else str(postgres_home() / "bin" / "postgres")
        done = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=_SERVER_TIMEOUT_S, check=True
        )
    except (ServerStartError, OSError, subprocess.SubprocessError):
        return "not installed"
    words = done.stdout.replace("v=", "").split()
    return next((word for word in words if word[:1].isdigit()), "unknown")
