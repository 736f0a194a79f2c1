"""
Proxies as the environment names them: HTTP_PROXY, HTTPS_PROXY, NO_PROXY, in either case.

Read once when the pool opens, by the standard library's rules. Rejected: aiohttp's own `trust_env`, which reads them in
a thread for every request and takes logins from ~/.netrc besides.
"""

from __future__ import annotations

from urllib.request import getproxies, proxy_bypass_environment  # type: ignore[attr-defined] # typeshed lacks it

from aegis.errors import ConfigError


def proxies_of_environment() -> dict[str, str]:
    """
    Proxy by scheme, with the entry `no` as NO_PROXY has it.

    Raises:
        ConfigError: a proxy is of a kind that is not spoken (socks).
    """
    found = {name: url for name, url in getproxies().items() if name in {"http", "https", "no"}}
    for name in found.keys() & {"http", "https"}:
        scheme, slashes, _ = found[name].partition("://")
        if not slashes:
            found[name] = f"http://{found[name]}"
        elif scheme.lower() not in {"http", "https"}:
            raise ConfigError([f"{name.upper()}_PROXY: a proxy of kind {scheme!r} is not spoken; use http or https"])
    return found


def proxy_for(url: str, host: str, proxies: dict[str, str]) -> str | None:
    """The proxy on the way to `host`, if there is one."""
    if proxy_bypass_environment(host, proxies):
        return None
    return proxies.get(url.partition(":")[0].lower())
