"""
The SQL of an upsert, as text: fold duplicates, insert what is new, update what differs, leave the rest alone.

Everybody takes his locks in one order: first the keys that are new, by key, then those that are there, by key. Two
writers of the same rows then wait for each other, and never in a circle.
"""

from __future__ import annotations

from itertools import count

from aegis.database._table import Name, Nulls, Target, listed, quoted

_OLD_AND_NEW = 180_000  # the version from which RETURNING tells old rows from new ones
_COUNTS = "count(*) filter (where is_new), count(*) filter (where not is_new)"


class Merge:
    """The statements for one table and the columns that are written. Every name in them is quoted."""

    def __init__(self, target: Target) -> None:
        self._target, self._names = target, listed(target.names)
        #: The column with the number of a row in its batch; of duplicates the greatest wins.
        self.order = next(name for at in count() if (name := f"aegis_row_{at}") not in target.names)
        self._rest = [name for name in target.names if name not in target.key]
        # Byte order is the same for every writer, and quicker than a language's.
        keyed = [column for column in target.columns if column.name in target.key]
        self._by_key = ", ".join(quoted(column.name) + (' collate "C"' if column.is_text else "") for column in keyed)
        self._same_key = self._matching("=")
        keys = listed(target.key)
        held, given = self._image("t."), self._image("excluded.")
        assignments = ", ".join(f"{quoted(name)} = excluded.{quoted(name)}" for name in self._rest)
        update = f"update set {assignments} where {held} *<> {given}" if self._rest else "nothing"
        self._or_update, self._or_nothing = f"on conflict ({keys}) do {update}", f"on conflict ({keys}) do nothing"

    @property
    def has_more(self) -> bool:
        """Whether there is anything beside the key, so that a row can differ."""
        return bool(self._rest)

    @property
    def needs_lock(self) -> bool:
        """A partitioned table shows no xmax, so before RETURNING OLD only a lock keeps the counts exact."""
        return self._target.is_partitioned and self._target.server < _OLD_AND_NEW

    @property
    def lock(self) -> str:
        """Keep other writers out until the transaction ends."""
        return f"lock table {self._target.name} in share row exclusive mode"

    def batch(self, batch: Name) -> str:
        """An empty temporary table of the written columns' own types."""
        return (
            f"create temp table {batch} on commit drop as "  # noqa: S608
            f"select {self._names}, 0::bigint as {self.order} from {self._target.name} with no data"
        )

    def fold(self, batch: Name, folded: Name) -> str:
        """A temporary table of the distinct keys; the server's answer counts them."""
        return f"create temp table {folded} on commit drop as {self._folding(str(batch))}"

    def insert(self, folded: Name, *, wary: bool) -> str:
        """What is new. Twice as quick when not `wary`, and then refused (23505) when another writer came first."""
        return (
            f"insert into {self._target.name} ({self._names}) select {self._names} from {folded} as f "  # noqa: S608
            f"where not exists ({self._there(self._same_key)}) order by {self._by_key} "
            f"{self._or_nothing if wary else ''}"
        )

    def update(self, folded: Name) -> str:
        """What is there and differs; returns how many had gone meanwhile and are new again, and how many were there."""
        differs = f"{self._image('t.')} *<> {self._image('f.')}"
        changed = f"exists ({self._there(f'{self._same_key} and {differs}')})"
        if self._target.nulls is Nulls.MEET:  # an index cannot look for these, so only they take the long way
            meeting = self._there(f"{self._matching('is not distinct from')} and {differs}")
            changed = f"({changed} or (({self._without_key}) and exists ({meeting})))"
        insert = (
            f"insert into {self._target.name} as t ({self._names}) select {self._names} from {folded} as f "  # noqa: S608
            f"where {changed} order by {self._by_key} {self._or_update}"
        )
        return f"with {self._changed(insert)} select {_COUNTS} from changed"  # noqa: S608

    def few(self) -> str:
        """All of it in one statement, for rows that come as one array per column; returns total, inserted, updated."""
        arrays = ", ".join(f"${at}::{column.type}[]" for at, column in enumerate(self._target.columns, 1))
        same_row = self._same_key + (f" and {self._image('t.')} *= {self._image('f.')}" if self._rest else "")
        insert = (
            f"insert into {self._target.name} as t ({self._names}) select {self._names} from folded as f "  # noqa: S608
            f"where not exists ({self._there(same_row)}) "
            f"order by exists ({self._there(self._same_key)}), {self._by_key} {self._or_update}"
        )
        source = f"unnest({arrays}) with ordinality as batch ({self._names}, {self.order})"
        return (
            f"with folded as materialized ({self._folding(source)}), {self._changed(insert)} "  # noqa: S608
            f"select (select count(*) from folded), {_COUNTS} from changed"
        )

    def _folding(self, source: str) -> str:
        """One row per key, the last of its batch. Rows with a NULL in their key stay apart where the index says so."""
        apart = self._by_key
        if self._target.nulls is Nulls.APART:
            apart += f", case when {self._without_key} then {self.order} end"
        return f"select distinct on ({apart}) {self._names} from {source} order by {apart}, {self.order} desc"  # noqa: S608

    def _changed(self, insert: str) -> str:
        # `xmax = 0` marks a row version that is new. Behind a lock, what was there is still there.
        is_new = "false" if self.needs_lock else "old.ctid is null" if self._target.is_partitioned else "xmax = 0"
        return f"changed as ({insert} returning {is_new} as is_new)"

    def _there(self, condition: str) -> str:
        return f"select from {self._target.name} as t where {condition}"

    def _matching(self, operator: str) -> str:
        return " and ".join(f"t.{quoted(name)} {operator} f.{quoted(name)}" for name in self._target.key)

    @property
    def _without_key(self) -> str:
        return " or ".join(f"{quoted(name)} is null" for name in self._target.key)

    def _image(self, prefix: str) -> str:
        """
        Compared with `*=` and `*<>`, byte by byte.

        That tells json, points and 1.0 from 1.00 apart, where `=` does not exist or says equal.
        """
        return f"row({listed(self._rest, prefix)})::record"
