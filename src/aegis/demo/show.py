"""Progress of a run: a live line on a terminal, plain lines elsewhere. All of it on stderr; stdout is the report's."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from aegis.demo.orchestrate import Progress
from aegis.telemetry import Sample

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


def as_samples(newest: Sequence[Progress]) -> Iterator[Sample]:
    """The newest progress as metrics."""
    for progress in newest[-1:]:
        for upstream, seen in progress.upstreams.items():
            labels = (("upstream", upstream),)
            yield Sample("upstream_requests", "Requests that arrived.", seen.requests, labels, total=True)
            yield Sample("upstream_rejected", "Requests refused for a quota.", seen.rejected, labels, total=True)
            yield Sample("upstream_quota_used", "Share of the quota used.", seen.quota_used, labels)
        yield Sample("ticks_published", "Ticks published.", progress.ticks_published, total=True)
        yield Sample("ticks_received", "Ticks received.", progress.ticks_received, total=True)
        yield Sample("gaps", "Losses reported to the subscriber.", progress.gaps, total=True)
        yield Sample("rows_upserted", "Rows inserted or updated.", progress.rows_upserted, total=True)


class ProgressShown:
    """Shows one run while it lasts."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        sys.stderr.write(f"{self._name}; starting servers, simulator and collectors\n")
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
