"""Redis for many processes: one fast connection, exact limits, a coherent cache, a broadcast without silent loss."""

from aegis.redis.client import Redis

__all__ = ["Redis"]
