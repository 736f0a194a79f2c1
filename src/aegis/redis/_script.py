"""Lua scripts: a file beside its caller, read once, sent by hash, by source when the server does not know the hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True, slots=True)
class Script:
    """One script: its source and its SHA-1, which the server knows it by."""

    name: str
    source: bytes
    sha: str


def load_script(*names: str) -> Script:
    """The script in `scripts/{name}.lua`; of several, their texts in this order: what scripts share stands once."""
    folder = resources.files("aegis.redis").joinpath("scripts")
    source = b"".join(folder.joinpath(f"{name}.lua").read_bytes() for name in names)
    return Script("+".join(names), source, hashlib.sha1(source, usedforsecurity=False).hexdigest())
