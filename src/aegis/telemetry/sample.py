"""One number of one process, as every exporter takes it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

PREFIX = "aegis_"


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """One number; with `buckets` a histogram, whose sum `value` is."""

    name: str  #: without prefix and suffix: `http_requests`
    meaning: str
    value: float | bool
    labels: tuple[tuple[str, str], ...] = ()
    total: bool = False  #: it only grows
    buckets: tuple[tuple[float, int], ...] = ()  #: upper bound and how many were at most that; the last is infinity

    @property
    def kind(self) -> str:
        """`counter`, `gauge` or `histogram`."""
        return "histogram" if self.buckets else "counter" if self.total else "gauge"


def histogram(
    name: str, meaning: str, sum_: float, bounds: Iterable[float], counts: Iterable[int], *labels: tuple[str, str]
) -> Sample:
    """A histogram from the counts of each bucket; one more count than bounds is what lay above the last of them."""
    upper, so_far, buckets = [*bounds, float("inf")], 0, []
    for bound, count in zip(upper, counts, strict=True):
        so_far += count
        buckets.append((bound, so_far))
    return Sample(name, meaning, sum_, labels, buckets=tuple(buckets))
