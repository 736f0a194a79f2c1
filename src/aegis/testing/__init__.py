"""
What you need to test a service that lives on sockets: a proxy that misbehaves, and real servers as pytest fixtures.

`FaultProxy` stands between a client and a real server. The fixtures are in `aegis.testing.fixtures`: name that module
in `pytest_plugins` of your `conftest.py`. No room of aegis imports this one.
"""

from aegis.testing.proxy import Direction, FaultProxy

__all__ = ["Direction", "FaultProxy"]
