"""
Where values come from: overrides over the environment over `X_FILE` over `.env`. The only reader of `os.environ`.

Nothing is judged here but the sources themselves: a file that cannot be read, a line that is none, a name given twice.
An empty value is an unset one. Nothing in a `.env` is expanded: `$` is a character like any other.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from dotenv.parser import parse_stream

from aegis.config.registry import Variable
from aegis.errors import ConfigProblem

ENVIRONMENT: Final = "environment"
_FILE_BYTES_MAX = 64 * 1024
_OTHERS_READ = stat.S_IROTH
#: Where container platforms mount secrets, readable for everybody in a place that nobody else can enter.
_MOUNTED = (Path("/run/secrets"), Path("/var/run/secrets"))


@dataclass(frozen=True, slots=True)
class Setting:
    """A value as it was found: text and the place it came from."""

    text: str
    source: str


@dataclass(slots=True)
class Found:
    """All settings by name, the strongest source winning; what is wrong with the sources; and what is doubtful."""

    settings: dict[str, Setting] = field(default_factory=dict)
    problems: list[ConfigProblem] = field(default_factory=list)
    warnings: list[ConfigProblem] = field(default_factory=list)


def collect(
    environ: Mapping[str, str] | None,
    env_file: str | Path | None,
    overrides: Mapping[str, str] | None,
    known: Mapping[str, Variable],
) -> Found:
    """Read every source; of the `known` variables, secrets may also be given as `X_FILE`."""
    found = Found()
    if env_file is not None:
        _read_env_file(Path(env_file), found, known)
    for source, values in ((ENVIRONMENT, os.environ if environ is None else environ), ("argument", overrides or {})):
        found.settings |= {name: Setting(value, source) for name, value in values.items() if value}
    for variable in known.values():
        if variable.secret:
            _follow(variable.name, found)
    return found


def _read_env_file(path: Path, found: Found, known: Mapping[str, Variable]) -> None:
    if path.name == ".env" and not path.exists():
        return
    text = _text_of(path, str(path), found)
    if text is None:
        return
    line = 1
    for binding in parse_stream(io.StringIO(text)):
        # A binding's text begins with the blank lines before it.
        blank = len(binding.original.string) - len(binding.original.string.lstrip())
        source = f"{path}:{line + binding.original.string[:blank].count(chr(10))}"
        line += binding.original.string.count("\n")
        if binding.error:
            found.problems.append(ConfigProblem(source, "not a line of the form NAME=value", kind="malformed"))
        elif binding.key and binding.value:
            earlier = found.settings.get(binding.key)
            if earlier is not None and earlier.text != binding.value and binding.key in known:
                reason = f"set twice, to different values, in {earlier.source} and here; keep one line"
                found.problems.append(ConfigProblem(binding.key, reason, source=source, kind="conflict"))
            found.settings[binding.key] = Setting(binding.value, source)


def _follow(variable: str, found: Found) -> None:
    """Replace `X_FILE` by what is in the file."""
    pointer = found.settings.pop(f"{variable}_FILE", None)
    if pointer is None:
        return
    direct = found.settings.get(variable)
    if direct is not None and (not _in_file(direct) or _in_file(pointer)):
        reason = f"set together with {variable}_FILE ({pointer.source}); set only one"
        found.problems.append(
            ConfigProblem(variable, reason, source=direct.source, kind="conflict", against=f"{variable}_FILE")
        )
        return
    path = Path(pointer.text)
    text = _text_of(path, f"{variable}_FILE", found, pointer.source)
    if text is None:
        return
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        problem = ConfigProblem(f"{variable}_FILE", f"{path} is empty", source=pointer.source, kind="unreadable")
        found.problems.append(problem)
        return
    if path.stat().st_mode & _OTHERS_READ and not any(path.is_relative_to(place) for place in _MOUNTED):
        reason = f"everybody on this machine can read {path}; chmod 600 it"
        found.warnings.append(ConfigProblem(f"{variable}_FILE", reason, source=pointer.source, kind="exposed"))
    found.settings[variable] = Setting(text, f"file {path}")


def _in_file(setting: Setting) -> bool:
    return setting.source not in {ENVIRONMENT, "argument"}


def _text_of(path: Path, name: str, found: Found, source: str = "") -> str | None:
    """The text of a small file; None if that is not what it is, which is then a problem of `name`."""
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES_MAX + 1)
        if len(content) <= _FILE_BYTES_MAX:
            return content.decode("utf-8-sig")
        reason = f"{path} holds more than {_FILE_BYTES_MAX // 1024} KiB"
    except OSError as exc:
        reason = f"cannot read {path}: {exc.strerror}"
    except UnicodeDecodeError:
        reason = f"{path} is not UTF-8 text"
    found.problems.append(ConfigProblem(name, reason, source=source, kind="unreadable"))
    return None
