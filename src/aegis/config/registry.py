"""The registry as a list: what `config show`, `config example`, `config docs` and the loader walk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from aegis.config._section import Section
from aegis.config._types import Kind
from aegis.config.sections import Config

MASK = "***"


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable of aegis. `default` and whatever `text` gives are written as in the environment; "" is unset."""

    name: str  #: `REDIS_PORT`
    section: str  #: part of `Config` it belongs to: `redis`; "" for the few that stand in `Config` itself
    field: str  #: its field there: `port`
    kind: Kind
    default: str
    meaning: str
    secret: bool  #: never shown; may also be given as NAME_FILE, the path of a file that holds it
    example: str  #: what one might set; "" where the default shows it
    live: bool  #: may change while the process runs
    words: tuple[str, ...] = ()  #: of a closed list: every word that is allowed

    def value(self, config: Config) -> Any:
        """What `config` holds for it."""
        return getattr(getattr(config, self.section) if self.section else config, self.field)

    def text(self, value: Any) -> str:
        """`value` as it would stand in the environment; a secret is masked."""
        if value is None:
            return ""
        return MASK if self.secret else self.kind.write(value)


@cache
def registry() -> tuple[Variable, ...]:
    """Every variable, section by section."""
    found = []
    for part, kind in sections().items():
        names = kind.variables()
        found += [
            _variable(names[field], part, field, info)
            for field, info in kind.model_fields.items()
            if section_of(info) is None
        ]
    return tuple(found)


@cache
def sections() -> dict[str, type[Section]]:
    """The parts of `Config` by name, and `Config` itself under the empty name."""
    parts = {name: kind for name, info in Config.model_fields.items() if (kind := section_of(info))}
    return {**parts, "": Config}


@cache
def variables() -> dict[str, Variable]:
    """The registry by name."""
    return {variable.name: variable for variable in registry()}


def section_of(info: FieldInfo) -> type[Section] | None:
    """The section that a field of `Config` holds, if it holds one."""
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _variable(name: str, part: str, field: str, info: FieldInfo) -> Variable:
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    words = get_args(info.annotation) if get_origin(info.annotation) is Literal else ()
    secret = SecretStr in {info.annotation, *get_args(info.annotation)}
    marked = next((mark for mark in info.metadata if isinstance(mark, Kind)), None)
    if marked is None and words:
        marked = Kind(f"{', '.join(words[:-1])} or {words[-1]}")
    kind = marked or Kind("path" if Path in get_args(info.annotation) else "text")
    default = info.get_default()
    return Variable(
        name=name,
        section=part,
        field=field,
        kind=kind,
        default="" if default is None else kind.write(default),
        meaning=info.description or "",
        secret=secret,
        example=str(extra.get("example") or ""),
        live=bool(extra.get("live")),
        words=words,
    )
