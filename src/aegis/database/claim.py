"""
Rows of a table as work for many processes: each row is given to one of them (FOR UPDATE SKIP LOCKED).

The claim is the transaction: while it is open nobody else gets the row, and when its process dies the server frees the
row at once. Rejected: a column that says who works on a row (after a crash somebody must guess how long to wait).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from aegis.database._table import Name, listed
from aegis.database.transaction import Transaction

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Claim(Generic[T]):
    """Rows that are yours until the block ends, and the transaction that holds them."""

    rows: list[T]
    tx: Transaction


def claiming(table: str, where: str, order_by: Sequence[str], limit_at: int, *, keep: bool) -> str:
    """
    The statement that claims; `$limit_at` is the number of rows.

    A row is found again by its place (`ctid`, and the partition's `tableoid`), so a table needs no key for this.
    """
    name, order = Name.of(table), f"order by {listed(order_by)}" if order_by else ""
    condition = f"where {where}" if where else ""
    lock = f"{condition} {order} limit ${limit_at} for update skip locked"
    if keep:
        return f"select * from {name} {lock}"  # noqa: S608 - the name is quoted, the condition is the caller's SQL
    return (  # names with `aegis_`, for the table's own columns stand beside them
        f"with picked as materialized (select ctid as aegis_place, tableoid as aegis_part from {name} {lock}), "  # noqa: S608 - as above
        "ranked as materialized (select *, row_number() over () as aegis_rank from picked), "
        f"gone as (delete from {name} as aegis_row using ranked where aegis_row.ctid = aegis_place "
        "and aegis_row.tableoid = aegis_part returning aegis_row, aegis_rank) "
        "select (aegis_row).* from gone order by aegis_rank"
    )
