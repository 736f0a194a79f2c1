"""Redis for many processes: one fast connection, exact limits, a coherent cache, a broadcast without silent loss."""

from aegis.redis.cache import TTL, Cache, CacheStats
from aegis.redis.client import Redis

__all__ = ["TTL", "Cache", "CacheStats", "Redis"]
