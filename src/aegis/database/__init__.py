"""PostgreSQL: a fair pool, one round trip per query, typed rows, exact upserts, migrations."""

from aegis.database.bulk import UpsertResult
from aegis.database.client import Database, Health, Transaction
from aegis.database.migrate import MIGRATIONS, Migration
from aegis.database.pool import PoolStats

__all__ = ["MIGRATIONS", "Database", "Health", "Migration", "PoolStats", "Transaction", "UpsertResult"]
