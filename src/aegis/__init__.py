"""
aegis: many processes, one quota, one token, one book of quotes.

    errors, backoff     what can go wrong; delays with jitter
    config              every variable, and the only reader of the environment
    redis               one fast connection; rate limits, cache, broadcast
    database            PostgreSQL pool, bulk upsert, migrations
    http                HTTP client: a permit for every wire request
    embedded            real servers from wheels
    upstream            KIS, DART, Naver: presets, profiles, clients, a strict simulator
    telemetry           logs and metrics
    runtime             everything joined
    demo, dashboard     the main job, and the page that shows it
    sync                the same objects, blocking, for scripts and notebooks
    doctor              a look at everything aegis stands on
    cli                 the command `aegis`

Importing `aegis` is quick: rooms are imported when their names are first used.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aegis.config import Config as Config
    from aegis.database import Database as Database
    from aegis.http import HttpClient as HttpClient
    from aegis.redis import Cache as Cache
    from aegis.redis import PubSub as PubSub
    from aegis.redis import Rate as Rate
    from aegis.redis import RateLimit as RateLimit
    from aegis.redis import RateLimiter as RateLimiter
    from aegis.redis import Redis as Redis
    from aegis.runtime import Runtime as Runtime

logging.getLogger(__name__).addHandler(logging.NullHandler())  # a program that configures no logging sees nothing

__version__ = "0.1.0"

_HOMES = {
    "Cache": "aegis.redis",
    "Config": "aegis.config",
    "Database": "aegis.database",
    "HttpClient": "aegis.http",
    "PubSub": "aegis.redis",
    "Rate": "aegis.redis",
    "RateLimit": "aegis.redis",
    "RateLimiter": "aegis.redis",
    "Redis": "aegis.redis",
    "Runtime": "aegis.runtime",
}

__all__ = [
    "Cache",
    "Config",
    "Database",
    "HttpClient",
    "PubSub",
    "Rate",
    "RateLimit",
    "RateLimiter",
    "Redis",
    "Runtime",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'aegis' has no attribute {name!r}")
    return getattr(import_module(home), name)
