"""`.env.example` and the page `docs/configuration.md`, made from the registry, so that neither can lie."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from importlib import resources
from itertools import groupby

from aegis.config.registry import Variable, registry, sections

_WIDTH = 100


def example_text() -> str:
    """The text of `.env.example`: every variable with its meaning and default, each commented out."""
    return "\n".join(_example_lines()) + "\n"


def docs_text() -> str:
    """The text of `docs/configuration.md`."""
    page = resources.files("aegis.config").joinpath("reference.md").read_text(encoding="utf-8")
    return page + "\n".join(_table_lines()) + "\n"


def _by_section() -> Iterator[tuple[str, list[Variable]]]:
    for part, found in groupby(registry(), key=lambda variable: variable.section):
        yield part, list(found)


def _title(part: str) -> str:
    return (sections()[part].__doc__ or "").strip().split("\n")[0] if part else "What concerns all of it."


def _example_lines() -> Iterator[str]:
    yield "# Every variable of aegis. Copy this file to .env and take away the # where you set one."
    yield "# Made by `aegis config example`; the rules are in docs/configuration.md."
    for part, found in _by_section():
        yield f"\n# --- {_title(part)}"
        for variable in found:
            notes = [variable.kind.name, *(["secret, or " + variable.name + "_FILE=path"] if variable.secret else [])]
            text = f"{variable.meaning} ({'; '.join(notes)})"
            yield from ("", *textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="#   "))
            yield f"#{variable.name}={variable.example or variable.default}"


def _table_lines() -> Iterator[str]:
    for part, found in _by_section():
        yield f"### {f'`config.{part}`: ' if part else ''}{_title(part)}\n"
        yield "| variable | type | default | meaning |\n|---|---|---|---|"
        for variable in found:
            kind = f"{variable.kind.name}, in {variable.kind.unit}" if variable.kind.unit else variable.kind.name
            marks = "".join([", **secret**" * variable.secret, ", live" * variable.live])
            default = f"`{variable.default}`" if variable.default else ""
            example = f"; for example `{variable.example}`" if variable.example else ""
            yield f"| `{variable.name}` | {kind}{marks} | {default} | {variable.meaning}{example} |"
        yield ""
