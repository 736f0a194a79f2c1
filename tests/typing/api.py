"""The public API as a type checker sees it."""

from dataclasses import dataclass
from typing import Any, assert_type

from aegis.database import Database, MaybeMissed, Notification, UpsertResult


@dataclass
class Bar:
    """A row."""

    code: str
    close: int


async def rows_have_the_type_that_was_asked_for(db: Database) -> None:
    """From the pool and inside a transaction; without `type`, whatever the driver gives."""
    assert_type(await db.fetch("select 1", type=Bar), list[Bar])
    assert_type(await db.fetch("select 1"), list[Any])
    assert_type(await db.fetch_one("select 1", type=Bar), Bar | None)
    async with db.transaction() as tx:
        assert_type(await tx.fetch("select $1", 1, type=Bar), list[Bar])
        assert_type(await tx.upsert("bars", [Bar("a", 1)], key="code"), UpsertResult)
    async for bar in db.iterate("select 1", type=Bar):
        assert_type(bar, Bar)
    async with db.listen("c") as notes:
        async for note in notes:
            assert_type(note, Notification | MaybeMissed)
