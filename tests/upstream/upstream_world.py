"""The simulator, real Redis and the real HTTP client, joined; and ways to be several processes at once."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import aiohttp

from aegis.backoff import Backoff
from aegis.config import HttpConfig, KisConfig, RedisConfig
from aegis.http import HttpClient, RetryPolicy
from aegis.redis import Cache, Rate, RateLimit, RateLimiter, Redis
from aegis.upstream import KisClient
from aegis.upstream.simulator import Simulator

WIDE = RateLimit("wide", Rate(1000, per=1))
FAST = RetryPolicy(backoff=Backoff(0.001, 0.002), throttle_backoff=Backoff(0.001, 0.002))
APP_KEY, APP_SECRET = "PSAppKeyOfATest", "AppSecretOfATest/+="


@dataclass
class World:
    """One process's rooms, and the simulator that all share."""

    simulator: Simulator
    http: HttpClient
    redis: Redis
    limiter: RateLimiter
    cache: Cache
    stack: AsyncExitStack
    valkey_url: str

    def config(self, **changes) -> KisConfig:
        return KisConfig(**{"app_key": APP_KEY, "app_secret": APP_SECRET, "base_url": self.simulator.url, **changes})

    def kis(self, limit: RateLimit | None = WIDE, token_limit: RateLimit | None = None, **changes) -> KisClient:
        """A client; `token_interval_s` of the rules is the limit of its tokens."""
        interval = self.simulator.rules.token_interval_s
        token_limit = token_limit or RateLimit("test-token", Rate(1, per=max(interval, 0.001)), pad=0.02)
        return KisClient(self.http, self.limiter, self.cache, self.config(**changes), limit, token_limit=token_limit)

    async def sibling(self) -> World:
        """What another process on the same Redis would have: its own connection, limiter, cache and pool."""
        redis = await self.stack.enter_async_context(Redis(RedisConfig(url=self.valkey_url)))
        http = await self.stack.enter_async_context(HttpClient(HttpConfig()))
        return replace(self, redis=redis, limiter=RateLimiter(redis), cache=Cache(redis), http=http.with_retry(FAST))

    async def issue_elsewhere(self) -> str:
        """Somebody who does not know our Redis has a token issued."""
        body = {"grant_type": "client_credentials", "appkey": APP_KEY, "appsecret": APP_SECRET}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self.simulator.url}/oauth2/tokenP", json=body) as answer,
        ):
            return (await answer.json())["access_token"]
