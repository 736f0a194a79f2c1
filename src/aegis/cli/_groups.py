"""The options of commands that start a Sentinel group or a cluster, and the group that they ask for."""

from __future__ import annotations

from typing import Annotated

import typer

from aegis.embedded import EmbeddedCluster, EmbeddedSentinel

ClusterSizes = Annotated[str, typer.Option(metavar="3+3", help="A cluster of so many primaries and replicas.")]
AsSentinel = Annotated[bool, typer.Option("--sentinel", help="A primary, two replicas and three Sentinels.")]


def group_of(cluster: str, *, sentinel: bool) -> EmbeddedCluster | EmbeddedSentinel | None:
    """
    The group that `--cluster` or `--sentinel` asks for, not started; None for neither.

    Raises:
        typer.BadParameter: both, or a cluster that cannot be.
    """
    if cluster and sentinel:
        raise typer.BadParameter("--cluster and --sentinel exclude each other")
    if cluster:
        return EmbeddedCluster(*_sizes(cluster))
    return EmbeddedSentinel() if sentinel else None


def _sizes(text: str) -> tuple[int, int]:
    """Primaries, and replicas of each: `3+3` gives 3 and 1."""
    primaries, _, replicas = text.partition("+")
    if not (primaries.isdigit() and replicas.isdigit() and int(primaries) and int(replicas) % int(primaries) == 0):
        raise typer.BadParameter(f"{text!r}: expected primaries+replicas, as many replicas for each: 3+0, 3+3 or 3+6")
    return int(primaries), int(replicas) // int(primaries)
