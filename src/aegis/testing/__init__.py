"""
What you need to test a service that lives on sockets: a proxy that misbehaves, waits for conditions, real servers.

`FaultProxy` stands between a client and a real server; `until` waits for what must become true. The servers are pytest
fixtures in `aegis.testing.fixtures`: name that module in `pytest_plugins` of your `conftest.py`. No room of aegis
imports this one.
"""

from aegis.testing.conditions import until, until_sync
from aegis.testing.partition import ClusterPartition
from aegis.testing.proxy import Direction, FaultProxy

__all__ = ["ClusterPartition", "Direction", "FaultProxy", "until", "until_sync"]
