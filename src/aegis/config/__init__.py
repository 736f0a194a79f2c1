"""
Every variable that aegis reads, in one registry, and the only reader of the environment.

    sections.py     the registry: one record per component, one line per variable, and the rules between variables
    _section.py     what such a record is           _types.py      durations, sizes, switches: read and written
    _sources.py     environment, X_FILE, .env       _load.py       from settings to one Config, every problem at once
    registry.py     the registry as a list          _documents.py  .env.example and the docs page, made from it
    _compare.py     fingerprint and reload          _children.py   the environment of a child process
    _postgres.py, _redis_url.py                     what a URL spells out

Validation is pydantic's; its settings package is not used because it names fields instead of variables, misses mistyped
names and can print a secret.
"""

from aegis.config._children import child_environ
from aegis.config._compare import Change, Reload
from aegis.config._documents import docs_text, example_text
from aegis.config._load import Examined, examine
from aegis.config._postgres import PostgresUrl, parse_postgres_url
from aegis.config._section import Section
from aegis.config._sources import Setting
from aegis.config.registry import Variable, registry
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
)

__all__ = [
    "Change",
    "Config",
    "DartConfig",
    "DatabaseConfig",
    "Examined",
    "HttpConfig",
    "KisConfig",
    "LogConfig",
    "MetricsConfig",
    "NaverConfig",
    "PostgresUrl",
    "RedisConfig",
    "Reload",
    "Section",
    "Setting",
    "Variable",
    "child_environ",
    "docs_text",
    "examine",
    "example_text",
    "parse_postgres_url",
    "registry",
]
