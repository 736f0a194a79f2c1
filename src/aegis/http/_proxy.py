"""
Proxies as the environment names them: HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, in either case.

Read once when the pool opens, by the standard library's rules; what is on this host is reached directly, as Go does it,
so that a company's proxy is not asked for a simulator on the loopback. Rejected: aiohttp's own `trust_env`, which reads
them in a thread for every request and takes logins from ~/.netrc besides.
"""

from __future__ import annotations

import contextlib
from ipaddress import ip_address
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass_environment  # type: ignore[attr-defined] # typeshed lacks it

from aegis.errors import ConfigError

_SCHEMES = ("http", "https", "all")


def proxies_of_environment() -> dict[str, str]:
    """
    Proxy by scheme, with the entry `no` as NO_PROXY has it.

    Raises:
        ConfigError: a proxy is of a kind that is not spoken (socks).
    """
    found = {name: url for name, url in getproxies().items() if name in {*_SCHEMES, "no"}}
    for name in found.keys() & set(_SCHEMES):
        scheme, slashes, _ = found[name].partition("://")
        if not slashes:
            found[name] = f"http://{found[name]}"
        elif scheme.lower() not in {"http", "https"}:
            reason = f"a proxy of kind {scheme!r} is not spoken; use http or https, or set HTTP_PROXY_FROM_ENV=false"
            raise ConfigError([f"{name.upper()}_PROXY: {reason}"])
    return found


def proxy_for(url: str, host: str, proxies: dict[str, str]) -> str | None:
    """The proxy on the way to `host` (and port), if there is one."""
    if not proxies or _is_here(host) or proxy_bypass_environment(host, proxies):
        return None
    return proxies.get(url.partition(":")[0].lower()) or proxies.get("all")


def _is_here(host: str) -> bool:
    with contextlib.suppress(ValueError):
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    return False
