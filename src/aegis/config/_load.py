"""
From settings to one `Config`, with every problem of every source and section in one report.

A section with a bad value is built a second time without it, so that its rules over several variables are looked at
as well; findings that touch a bad value are dropped, because they would judge its default.
"""

from __future__ import annotations

import difflib
import fnmatch
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aegis.config._section import Addressed, ConflictsError, Section
from aegis.config._sources import Setting, collect
from aegis.config._types import parse_names
from aegis.config.registry import Variable, sections, variables
from aegis.config.sections import Config
from aegis.errors import ConfigError, ConfigProblem

logger = logging.getLogger("aegis.config")

FAMILIES = ("REDIS_", "DB_", "DATABASE_", "HTTP_", "KIS_", "DART_", "NAVER_", "LOG_", "METRICS_", "AEGIS_")
#: Names of our families that belong to somebody else: the proxy of every HTTP client, and what Kubernetes and Docker
#: put into the environment of a container beside a service called `redis` or `db`.
_FOREIGN = re.compile(
    r"HTTP_PROXY|[A-Z0-9_]+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)"
)
_SUGGEST_CUTOFF = 0.7
_SHOWN_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found, whether or not it can be used. `config` is None exactly when there are problems."""

    config: Config | None
    settings: Mapping[str, Setting]
    problems: tuple[ConfigProblem, ...]
    warnings: tuple[ConfigProblem, ...]

    def source(self, variable: Variable) -> str:
        """Where the value of a variable comes from: a source, the URL that spells it out, or `default`."""
        setting = self.settings.get(variable.name)
        return setting.source if setting else self._url(variable) or "default"

    def _url(self, variable: Variable) -> str:
        kind = sections()[variable.section]
        url = kind.variables().get("url", "")
        if self.config is None or url not in self.settings or not issubclass(kind, Addressed):
            return ""
        return url if variable.field in kind.parts_of(self.settings[url].text) else ""


def load_config(
    environ: Mapping[str, str] | None = None,
    env_file: str | Path | None = ".env",
    overrides: Mapping[str, str] | None = None,
) -> Config:
    """See `Config.load`."""
    examined = examine(environ, env_file, overrides)
    if examined.config is None:
        raise ConfigError(examined.problems)
    for warning in examined.warnings:
        logger.warning("%s", warning)
    return examined.config


def examine(
    environ: Mapping[str, str] | None = None,
    env_file: str | Path | None = ".env",
    overrides: Mapping[str, str] | None = None,
) -> Examined:
    """Read and check everything; never raises for what it finds."""
    found = collect(environ, env_file, overrides, variables())
    problems = [*found.problems, *_unknown(found.settings), *_malformed(found.settings)]
    bad = {problem.variable for problem in problems}
    usable = {name: setting for name, setting in found.settings.items() if name in variables() and name not in bad}
    parts: dict[str, Any] = {}
    config: Section | None = None
    for part, kind in sections().items():  # Config itself comes last
        config, more = _build(kind, usable, parts if kind is Config else {})
        problems += more
        parts[part] = config
    found.warnings += _doubtful(config) if isinstance(config, Config) and not problems else ()
    return Examined(
        config=config if isinstance(config, Config) and not problems else None,
        settings=found.settings,
        problems=tuple(sorted(problems, key=lambda problem: (problem.variable, problem.reason))),
        warnings=tuple(found.warnings),
    )


def _unknown(settings: Mapping[str, Setting]) -> Iterator[ConfigProblem]:
    """Variables of our families that we do not have, with the nearest that we have."""
    ignored = parse_names(settings["AEGIS_IGNORE"].text) if "AEGIS_IGNORE" in settings else ()
    known = variables()
    for name, setting in settings.items():
        ours = name.startswith(FAMILIES) or name.upper() in known
        if name in known or not ours or any(fnmatch.fnmatchcase(name, pattern) for pattern in ignored):
            continue
        plain = known.get(name.removesuffix("_FILE"))
        if plain is not None and name.endswith("_FILE"):
            reason, nearest = "only secrets are read from files", [plain.name]
        elif _FOREIGN.fullmatch(name):
            continue
        else:
            reason = "unknown variable"
            nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=_SUGGEST_CUTOFF)
            reason += "" if nearest else "; remove it, or name it in AEGIS_IGNORE if another program reads it"
        yield ConfigProblem(name, reason, source=setting.source, kind="unknown", suggestion="".join(nearest))


def _malformed(settings: Mapping[str, Setting]) -> Iterator[ConfigProblem]:
    """Text that is no value of anything: slips of copying."""
    for name, variable in variables().items():
        setting = settings.get(name)
        if setting is None:
            continue
        if any(ord(character) < ord(" ") or ord(character) == 127 for character in setting.text):
            reason = "holds a control character, such as the end of a line"
        elif setting.text != setting.text.strip():
            reason = "begins or ends with a blank"
        else:
            continue
        value = None if variable.secret else _without_login(setting.text)
        yield ConfigProblem(name, reason, value, setting.source, kind="malformed")


def _build(
    kind: type[Section], settings: Mapping[str, Setting], parts: Mapping[str, Any]
) -> tuple[Section | None, list[ConfigProblem]]:
    """The section, or None and all that is wrong with it."""
    names = kind.variables()
    values = {field: settings[name].text for field, name in names.items() if name in settings}
    problems: list[ConfigProblem] = []
    for _ in range(2):
        try:
            built = kind.model_validate({**{part: value for part, value in parts.items() if value}, **values})
        except ValidationError as exc:
            bad = {problem.variable for problem in problems}
            problems += [
                problem for problem in _problems(exc, kind, settings) if not bad & {problem.variable, problem.against}
            ]
            fields = {str(error["loc"][0]) for error in exc.errors() if error["loc"]}
            if not fields:
                break
            values = {field: value for field, value in values.items() if field not in fields}
        else:
            return (None if problems else built), problems
    return None, problems


def _problems(exc: ValidationError, kind: type[Section], settings: Mapping[str, Setting]) -> Iterator[ConfigProblem]:
    names = kind.variables()
    for error in exc.errors(include_url=False, include_input=False):
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, ConflictsError):
            for problem in cause.problems:
                yield _located(problem, settings)
            continue
        variable = variables()[names[str(error["loc"][0])]]
        reason = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        suggestion = ""
        if settings.get(variable.name, Setting("", "")).text.startswith("tcp://"):
            reason += "; Kubernetes puts a service's address there: set it yourself, or enableServiceLinks: false"
        if variable.words:
            reason = f"must be {variable.kind.name}"
            suggestion = _word(settings.get(variable.name), variable.words)
        yield _located(ConfigProblem(variable.name, reason, suggestion=suggestion), settings)


def _located(problem: ConfigProblem, settings: Mapping[str, Setting]) -> ConfigProblem:
    """With the text that was found, unless it is a secret, and where it was found."""
    setting = settings.get(problem.variable)
    if setting is None:
        return replace(problem, source="default")
    source = setting.source
    if problem.against in settings:
        source += f"; {problem.against}: {settings[problem.against].source}"
    value = None if variables()[problem.variable].secret else _without_login(setting.text)
    return replace(problem, value=value, source=source)


def _without_login(text: str) -> str:
    """An address may hold a login where none belongs; long text is cut."""
    return re.sub(r"//[^/]*@", "//***@", text)[:_SHOWN_CHARS_MAX]


def _word(setting: Setting | None, words: Iterable[str]) -> str:
    if setting is None:
        return ""
    text = setting.text.lower()
    longer = [word for word in words if word.startswith(text)]
    return "".join(longer[:1] or difflib.get_close_matches(text, words, n=1))


def _doubtful(config: Config) -> Iterator[ConfigProblem]:
    """What is allowed, and yet hardly meant."""
    if config.env != "production":
        return
    for variable, section in (("REDIS_URL", config.redis), ("DATABASE_URL", config.database)):
        if section.embedded:
            reason = "embedded: in production: other processes share nothing with this one, and its data end with it"
            yield ConfigProblem(variable, reason, kind="doubtful")
    if not config.redis.enabled:
        yield ConfigProblem("REDIS_ENABLED", "false in production: no limit holds any more", kind="doubtful")
