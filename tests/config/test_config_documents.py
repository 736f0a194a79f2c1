"""What is made from the registry is what is committed: `make docs` renews both files."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegis.config import Config, docs_text, example_text, registry

ROOT = Path(__file__).parent.parent.parent
RENEW = "not what the registry says; run `make docs` and commit the result"


def test_the_committed_example_is_what_the_registry_says():
    """`.env.example` is exactly the output of `aegis config example`."""
    assert (ROOT / ".env.example").read_text() == example_text(), RENEW


def test_the_committed_page_is_what_the_registry_says():
    """`docs/configuration.md` is exactly the output of `aegis config docs`."""
    assert (ROOT / "docs" / "configuration.md").read_text() == docs_text(), RENEW


def test_the_example_as_it_is_sets_nothing(tmp_path):
    """A copy of it is a valid `.env` that changes nothing."""
    (file := tmp_path / ".env").write_text(example_text())
    assert Config.load({}, file) == Config.load({}, None)


@pytest.mark.parametrize("variable", registry(), ids=lambda variable: variable.name)
def test_every_line_of_the_example_can_be_switched_on(variable, tmp_path):
    """Its default is what it says, and its example is accepted."""
    [line] = [line for line in example_text().splitlines() if line.startswith(f"#{variable.name}=")]
    (file := tmp_path / ".env").write_text(line.removeprefix("#"))
    config = Config.load({}, file)
    if not variable.example:
        assert config == Config.load({}, None)


def test_the_page_names_type_default_and_meaning_of_every_variable():
    """One row each; secrets are marked."""
    page = docs_text()
    for variable in registry():
        [row] = [line for line in page.splitlines() if line.startswith(f"| `{variable.name}` |")]
        assert variable.kind.name in row
        assert variable.meaning in row
        assert ("**secret**" in row) == variable.secret
        assert f"`{variable.default}`" in row or not variable.default
