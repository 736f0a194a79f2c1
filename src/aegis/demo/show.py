"""Progress of a run: a live line on a terminal, plain lines elsewhere. All of it on stderr; stdout is the report's."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from aegis.demo.orchestrate import Progress

_UPSTREAMS = (("KIS", "kis"), ("DART", "dart"), ("Naver", "naver"))


def as_line(progress: Progress) -> str:
    """One line: quota used and refusals of every upstream, ticks, rows."""
    upstreams = "  ".join(
        f"{label} {seen.quota_used:4.0%} of quota, {seen.rejected} refused"
        for label, name in _UPSTREAMS
        for seen in (progress.upstreams[name],)
    )
    ticks = f"ticks {progress.ticks_received}/{progress.ticks_published}, gaps {progress.gaps}"
    return f"{upstreams}  {ticks}  rows {progress.rows_upserted}  tokens {progress.tokens_issued}"


class ProgressShown:
    """Shows one run while it lasts."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        sys.stderr.write(f"{self._name}: starting servers, simulator and collectors\n")
        if sys.stderr.isatty():
            columns = (
                BarColumn(bar_width=20),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}"),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("starting", total=None)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, progress: Progress) -> None:
        """Show where the run is."""
        if self._bar is not None:
            self._bar.update(
                self._task, total=progress.seconds, completed=progress.elapsed_s, description=as_line(progress)
            )
        else:
            sys.stderr.write(f"{progress.elapsed_s:5.1f} s of {progress.seconds:g}  {as_line(progress)}\n")
