"""
Every variable that aegis reads, in one registry, and the only reader of the environment.

`sections.py` is the registry: one frozen record per component, one line per variable with type, unit, default and
meaning. `_load.py` collects values from their sources and reports everything that is wrong at once. `_types.py` holds
the scalar types (durations, sizes, switches). Validation is pydantic's; its settings package is not used because it
names fields instead of variables, misses mistyped names and can print a secret.
"""

from aegis.config._children import child_environ
from aegis.config._load import load_config
from aegis.config._postgres import PostgresUrl, parse_postgres_url
from aegis.config.sections import (
    Config,
    DartConfig,
    DatabaseConfig,
    HttpConfig,
    KisConfig,
    LogConfig,
    MetricsConfig,
    NaverConfig,
    RedisConfig,
    Section,
)

__all__ = [
    "Config",
    "DartConfig",
    "DatabaseConfig",
    "HttpConfig",
    "KisConfig",
    "LogConfig",
    "MetricsConfig",
    "NaverConfig",
    "PostgresUrl",
    "RedisConfig",
    "Section",
    "child_environ",
    "load_config",
    "parse_postgres_url",
]
