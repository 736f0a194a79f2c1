"""What runs as long as a `with` block: one server, or several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Block(ABC):
    """Starts where the block is entered and stops where it is left, whatever left it."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    @abstractmethod
    def start(self) -> None:
        """Return when it serves, or raise with nothing left running."""

    @abstractmethod
    def stop(self) -> None:
        """End it. Idempotent."""
