"""PostgreSQL: a fair pool, one round trip per query, typed rows, exact upserts, migrations."""

from aegis.database._lease import PoolStats
from aegis.database.bulk import UpsertResult
from aegis.database.client import Database, Health
from aegis.database.migrate import MIGRATIONS, Migration
from aegis.database.transaction import Isolation, Transaction

__all__ = ["MIGRATIONS", "Database", "Health", "Isolation", "Migration", "PoolStats", "Transaction", "UpsertResult"]
