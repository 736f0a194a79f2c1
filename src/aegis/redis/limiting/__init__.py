"""Behind `aegis.redis.ratelimit`, whose docstring says who owns what. `limit` holds the records that users see."""
