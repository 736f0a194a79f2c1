"""Redis for many processes: one fast connection, exact limits, a coherent cache, a broadcast without silent loss."""

from aegis.redis.cache import TTL, Cache, CacheEntry, CacheStats, CacheSurvey
from aegis.redis.client import Redis
from aegis.redis.pubsub import Gap, PubSub, PubSubStats, Subscription, Update
from aegis.redis.ratelimit import (
    Decision,
    Lane,
    LaneStats,
    LimiterStats,
    LimitStats,
    LocalShare,
    Rate,
    RateLimit,
    RateLimiter,
    Usage,
)

__all__ = [
    "TTL",
    "Cache",
    "CacheEntry",
    "CacheStats",
    "CacheSurvey",
    "Decision",
    "Gap",
    "Lane",
    "LaneStats",
    "LimitStats",
    "LimiterStats",
    "LocalShare",
    "PubSub",
    "PubSubStats",
    "Rate",
    "RateLimit",
    "RateLimiter",
    "Redis",
    "Subscription",
    "Update",
    "Usage",
]
