"""What a process is called that was given no name."""

from __future__ import annotations

import sys
from pathlib import Path


def program() -> str:
    """The name of the program: of its file, or of the package that `python -m` was given."""
    path = Path(sys.argv[0] or "python")
    return path.parent.name if path.name == "__main__.py" else path.stem
