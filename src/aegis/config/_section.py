"""
What a section of the registry is: a frozen record whose fields are variables, and the rules between them.

A rule over several variables is an iterator of problems and not an exception, so that one finding hides no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from aegis.errors import ConfigProblem

EMBEDDED = "embedded:"
_PLACES = frozenset({"host", "port", "socket"})


def var(default: Any, meaning: str, *, name: str = "", example: str = "", live: bool = False) -> Any:
    """
    One variable: its default, its meaning, and where the prefix rule does not give it, its name.

    `live` marks one that may change while the process runs (see `Config.reload`).
    """
    extra: dict[str, Any] = {"variable": name, "example": example, "live": live}
    return Field(default, description=meaning, validate_default=True, json_schema_extra=extra)


def conflict(variable: str, against: str, reason: str) -> ConfigProblem:
    """Two variables that cannot both be meant."""
    return ConfigProblem(variable, reason, kind="conflict", against=against)


class ConflictsError(ValueError):
    """What pydantic is told: every conflict of one section at once."""

    def __init__(self, problems: tuple[ConfigProblem, ...]) -> None:
        super().__init__(problems)
        self.problems = problems

    def __str__(self) -> str:
        return "; ".join(map(str, self.problems))


class Section(BaseModel):
    """The variables of one component. Frozen; an unknown field is an error; errors never show an input."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    prefix: ClassVar[str] = ""

    @classmethod
    def variables(cls) -> Mapping[str, str]:
        """Field name to variable name, in the order of the registry."""
        names: dict[str, str] = {}
        for field, info in cls.model_fields.items():
            extra = info.json_schema_extra
            named = extra.get("variable") if isinstance(extra, dict) else None
            names[field] = str(named) if named else cls.prefix + field.upper()
        return names

    def conflicts(self) -> Iterator[ConfigProblem]:
        """Every rule over several variables that does not hold."""
        yield from ()

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        found = tuple(self.conflicts())
        if found:
            raise ConflictsError(found)
        return self


class Addressed(Section):
    """A section whose `url` spells out some of the other fields, so that readers of the record look at one place."""

    @classmethod
    def spelled(cls, url: str) -> dict[str, Any]:
        """The fields that `url` says. Raises ValueError without repeating it: it may hold a password."""
        raise NotImplementedError

    @property
    def embedded(self) -> bool:
        """Whether the runtime shall start a server of its own."""
        url: SecretStr | None = getattr(self, "url", None)
        return url is not None and url.get_secret_value() == EMBEDDED

    @classmethod
    def checked(cls, url: SecretStr | None) -> SecretStr | None:
        """`url`, if it can be spelled out."""
        cls.parts_of(url)
        return url

    @classmethod
    def parts_of(cls, url: SecretStr | str | None) -> dict[str, Any]:
        """As `spelled`, but nothing where there is no URL, or no place in it."""
        text = url.get_secret_value() if isinstance(url, SecretStr) else url
        return {} if not text or text == EMBEDDED else cls.spelled(text)

    @field_validator("url", check_fields=False)
    @classmethod
    def _can_be_spelled(cls, url: SecretStr | None) -> SecretStr | None:
        return cls.checked(url)

    @model_validator(mode="before")
    @classmethod
    def _filled_from_url(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        try:
            parts = cls.parts_of(values.get("url"))
        except ValueError:
            return values  # reported as the problem of the url itself
        return {**parts, **{field: value for field, value in values.items() if value is not None}}

    def conflicts(self) -> Iterator[ConfigProblem]:
        """A part that was set beside the URL and says something else."""
        names = self.variables()
        if self.embedded:
            for field in sorted(_PLACES & self.model_fields_set):
                yield conflict(names[field], names["url"], f"contradicts {names['url']}=embedded:; set only one")
        for field, value in self.parts_of(getattr(self, "url", None)).items():
            given = getattr(self, field)
            if isinstance(given, SecretStr):
                agrees, shown = given.get_secret_value() == value, ""
            else:
                agrees, shown = str(given).casefold() == str(value).casefold(), f", which says {value!s}"
            if not agrees:
                yield conflict(names[field], names["url"], f"contradicts {names['url']}{shown}; set only one")
