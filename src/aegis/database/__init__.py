"""PostgreSQL: a fair pool, one round trip per query, typed rows, exact upserts, notifications, migrations."""

from aegis.database._lease import PoolStats
from aegis.database.bulk import UpsertResult
from aegis.database.claim import Claim
from aegis.database.client import Database, Health
from aegis.database.listen import Listener, MaybeMissed, Notification
from aegis.database.migrate import MIGRATIONS, Migration
from aegis.database.stream import Stream
from aegis.database.transaction import Isolation, Transaction

__all__ = [
    "MIGRATIONS",
    "Claim",
    "Database",
    "Health",
    "Isolation",
    "Listener",
    "MaybeMissed",
    "Migration",
    "Notification",
    "PoolStats",
    "Stream",
    "Transaction",
    "UpsertResult",
]
