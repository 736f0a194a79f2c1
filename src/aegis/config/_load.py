"""
From sources to one `Config`: environment over `X_FILE` over `.env` over default, and every problem in one report.

An empty value is an unset one. Unknown variables of our families are reported with the nearest known name; other names
in a shared `.env` are none of our business.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dotenv.parser import parse_stream
from pydantic import SecretStr, ValidationError

from aegis.config.sections import Config, Section
from aegis.errors import ConfigError

FAMILIES = ("REDIS_", "DB_", "DATABASE_", "HTTP_", "KIS_", "DART_", "NAVER_", "LOG_", "METRICS_", "AEGIS_")
#: Names of our families that belong to somebody else: the proxy of every HTTP client.
FOREIGN = frozenset({"HTTP_PROXY"})
_SECRET_FILE_BYTES_MAX = 64 * 1024
SectionT = TypeVar("SectionT", bound=Section)


@dataclass(frozen=True, slots=True)
class Setting:
    """A value as it was found: text and the place it came from."""

    text: str
    source: str


def load_config(environ: Mapping[str, str] | None = None, env_file: str | Path | None = ".env") -> Config:
    """See `Config.load`."""
    problems: list[str] = []
    settings = _collect(os.environ if environ is None else environ, env_file, problems)
    _report_unknown(settings, problems)
    parts: dict[str, Any] = {}
    for name, info in Config.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            section = _build(kind, settings, problems)
            if section is not None:
                parts[name] = section
    root = {
        field: settings[variable].text
        for field, variable in Config.variables().items()
        if field in ROOT_FIELDS and variable in settings
    }
    config = _validate(Config, {**parts, **root}, settings, problems)
    if problems or config is None:
        raise ConfigError(sorted(problems))
    return config


ROOT_FIELDS = tuple(
    field
    for field, info in Config.model_fields.items()
    if not (isinstance(info.annotation, type) and issubclass(info.annotation, Section))
)


def known_variables() -> dict[str, type[Section]]:
    """Every variable of the registry and the section it belongs to."""
    known: dict[str, type[Section]] = {}
    for field, info in Config.model_fields.items():
        if field in ROOT_FIELDS:
            known[Config.variables()[field]] = Config
        elif isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            known.update(dict.fromkeys(info.annotation.variables().values(), info.annotation))
    return known


def _secret_variables() -> frozenset[str]:
    return frozenset(
        variable
        for variable, section in known_variables().items()
        for field, name in section.variables().items()
        if name == variable and SecretStr in _members(section.model_fields[field].annotation)
    )


def _members(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__args__", (annotation,))


def _collect(environ: Mapping[str, str], env_file: str | Path | None, problems: list[str]) -> dict[str, Setting]:
    """Every non-empty setting by name, the strongest source winning."""
    found: dict[str, Setting] = {}
    if env_file is not None and Path(env_file).is_file():
        with Path(env_file).open(encoding="utf-8") as lines:
            for binding in parse_stream(lines):
                source = f"{env_file}:{binding.original.line}"
                if binding.error:
                    problems.append(f"{source}: not a line of the form NAME=value")
                elif binding.key and binding.value:
                    found[binding.key] = Setting(binding.value, source)
    found |= {name: Setting(value, "environment") for name, value in environ.items() if value}
    for variable in sorted(_secret_variables()):
        pointer = found.pop(f"{variable}_FILE", None)
        if pointer is None:
            continue
        if variable in found and found[variable].source == "environment":
            problems.append(f"{variable}: set together with {variable}_FILE; set only one")
            continue
        text = _read_secret(variable, pointer, problems)
        if text:
            found[variable] = Setting(text, f"file {pointer.text}")
    return found


def _read_secret(variable: str, pointer: Setting, problems: list[str]) -> str | None:
    path = Path(pointer.text)
    try:
        with path.open("rb") as file:
            content = file.read(_SECRET_FILE_BYTES_MAX + 1)
        if len(content) > _SECRET_FILE_BYTES_MAX:
            problems.append(f"{variable}_FILE: {path} holds more than {_SECRET_FILE_BYTES_MAX} bytes")
            return None
        return content.decode().removesuffix("\n").removesuffix("\r")
    except OSError as exc:
        problems.append(f"{variable}_FILE: cannot read {path}: {exc.strerror} (source {pointer.source})")
    except UnicodeDecodeError:
        problems.append(f"{variable}_FILE: {path} is not UTF-8 text")
    return None


def _report_unknown(settings: Mapping[str, Setting], problems: list[str]) -> None:
    known = known_variables()
    for name in sorted(settings):
        if name in known or name in FOREIGN or not name.startswith(FAMILIES):
            continue
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
        hint = f"; did you mean {nearest[0]}?" if nearest else "; remove it, or see `aegis config example`"
        problems.append(f"{name}: unknown variable{hint} (source {settings[name].source})")


def _build(kind: type[Section], settings: Mapping[str, Setting], problems: list[str]) -> Section | None:
    values = {field: settings[name].text for field, name in kind.variables().items() if name in settings}
    return _validate(kind, values, settings, problems)


def _validate(
    kind: type[SectionT], values: dict[str, Any], settings: Mapping[str, Setting], problems: list[str]
) -> SectionT | None:
    try:
        return kind.model_validate(values)
    except ValidationError as exc:
        secrets = _secret_variables()
        for error in exc.errors(include_url=False, include_context=False, include_input=False):
            reason = error["msg"].removeprefix("Value error, ")
            field = str(error["loc"][0]) if error["loc"] else ""
            name = kind.variables().get(field)
            if name is None:
                problems.append(reason)  # a rule over several variables names them itself
                continue
            setting = settings.get(name)
            got = "" if setting is None or name in secrets else f", got {setting.text!r}"
            source = "default" if setting is None else setting.source
            problems.append(f"{name}: {reason}{got} (source {source})")
        return None
