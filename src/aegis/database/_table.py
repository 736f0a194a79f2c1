"""A table as a bulk write must know it: its name, quoted; from the server, its columns and the kind of its key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from aegis.database._driver import Conn
from aegis.errors import QueryError, RowShapeError

_UNDEFINED_TABLE = "42P01"
#: One row per column. `-1` keeps the type's modifier out: a cast to varchar(3) cuts silently, an assignment refuses.
#: to_jsonb: the column indnullsnotdistinct exists since PostgreSQL 15.
_DESCRIBE = """
select n.nspname as schema, a.attname as name, format_type(a.atttypid, -1) as type, t.typcategory = 'A' as is_array,
       a.attgenerated <> '' or a.attidentity = 'a' as is_computed,
       exists (select from pg_collation l where l.oid = a.attcollation and l.collisdeterministic) as is_text,
       c.relkind = 'p' as is_partitioned, current_setting('server_version_num')::int as server,
       current_setting('statement_timeout') as statement_timeout, current_setting('work_mem') as work_mem,
       a.attnotnull as is_filled,
       exists (select from pg_index i where i.indrelid = c.oid and i.indisunique
               and (to_jsonb(i) ->> 'indnullsnotdistinct')::bool
               and (select array_agg(k.attname::text order by k.attname) from pg_attribute k
                    where k.attrelid = c.oid and k.attnum = any((i.indkey::int2[])[0:i.indnkeyatts - 1])) = $2
       ) as nulls_match
from pg_class c join pg_namespace n on n.oid = c.relnamespace
join pg_attribute a on a.attrelid = c.oid join pg_type t on t.oid = a.atttypid
where c.oid = to_regclass($1) and a.attnum > 0 and not a.attisdropped
"""


def quoted(name: str) -> str:
    """An identifier, safe inside SQL, exactly as it is written."""
    return '"' + name.replace('"', '""') + '"'


def listed(names: Sequence[str], prefix: str = "") -> str:
    """Identifiers with commas between them."""
    return ", ".join(prefix + quoted(name) for name in names)


@dataclass(frozen=True, slots=True)
class Name:
    """A table's name; `schema` is None where the search path decides."""

    schema: str | None
    table: str

    @classmethod
    def of(cls, name: str) -> Name:
        """From `table` or `schema.table`, exactly as written; a part with a dot stands in double quotes."""
        parts = re.findall(r'"((?:[^"]|"")+)"(?:\.|$)|([^.]+)(?:\.|$)', name)
        words = [quoted_part.replace('""', '"') or plain for quoted_part, plain in parts]
        if len(words) not in {1, 2}:
            raise ValueError(f'{name!r} is no name of a table; write table, schema.table or schema."odd.table"')
        return cls(words[0] if len(words) == 2 else None, words[-1])

    def __str__(self) -> str:
        return quoted(self.table) if self.schema is None else f"{quoted(self.schema)}.{quoted(self.table)}"


class Nulls(Enum):
    """What two keys are to each other that have a NULL at the same place."""

    NONE = 0  #: there are none: the columns are NOT NULL
    APART = 1  #: two keys
    MEET = 2  #: one key: the index is NULLS NOT DISTINCT


@dataclass(frozen=True, slots=True)
class Column:
    """One column that is written."""

    name: str
    type: str
    is_array: bool
    is_text: bool


@dataclass(frozen=True, slots=True)
class Target:
    """The written columns of a table, in the order of the rows."""

    name: Name  #: with its schema, so that no temporary table and no WITH query can stand before it
    columns: tuple[Column, ...]
    picks: tuple[int, ...] | None  #: positions in a row that are written; None: all of them
    key: tuple[str, ...]
    nulls: Nulls
    is_partitioned: bool
    server: int  #: its version, such as 180004
    statement_timeout: str  #: as it stands in this transaction
    work_mem: str

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)


async def describe(conn: Conn, table: str, names: Sequence[str], key: Sequence[str] = ()) -> Target:
    """
    Ask the server about `table`; one round trip. Columns that the server computes are left out of what is written.

    Raises:
        QueryError: 42P01, there is no such table.
        RowShapeError: the table has no such columns.
        ValueError: the key is not among the columns.
    """
    absent = [column for column in key if column not in names]
    if absent:
        raise ValueError(f"{table}: the key columns {absent} are not among {list(names)}")
    name = Name.of(table)
    rows = {row["name"]: row for row in await conn.fetch(_DESCRIBE, str(name), sorted(key))}
    if not rows:
        raise QueryError(_UNDEFINED_TABLE, f"relation {name} does not exist")
    extra = [column for column in names if column not in rows]
    if extra:
        raise RowShapeError(f"table {table}", [], extra)
    computed = [column for column in names if rows[column]["is_computed"]]
    if set(computed) & set(key):
        raise ValueError(f"{table}: the server computes {computed}, so no row can be found by it; choose another key")
    written = [column for column in names if column not in computed]
    any_row = next(iter(rows.values()))
    nulls = Nulls.MEET if any_row["nulls_match"] else Nulls.APART
    if all(rows[column]["is_filled"] for column in key):
        nulls = Nulls.NONE
    return Target(
        name=Name(any_row["schema"], name.table),
        columns=tuple(Column(c, rows[c]["type"], rows[c]["is_array"], rows[c]["is_text"]) for c in written),
        picks=tuple(names.index(column) for column in written) if computed else None,
        key=tuple(key),
        nulls=nulls,
        is_partitioned=any_row["is_partitioned"],
        server=any_row["server"],
        statement_timeout=any_row["statement_timeout"],
        work_mem=any_row["work_mem"],
    )
