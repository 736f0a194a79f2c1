"""One process of a fleet: opens its rooms, says `ready`, waits for a line, asks for a price, and tells what it got."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys

from aegis.config import HttpConfig, KisConfig, RedisConfig
from aegis.http import HttpClient
from aegis.redis import Cache, RateLimiter, Redis
from aegis.upstream import KisClient


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main() -> None:
    spec = json.loads(sys.argv[1])
    async with Redis(RedisConfig(url=spec["redis"])) as redis, HttpClient(HttpConfig()) as http:
        config = KisConfig(app_key=spec["key"], app_secret=spec["secret"], base_url=spec["kis"])
        client = KisClient(http, RateLimiter(redis), Cache(redis), config)
        tell("ready")
        await asyncio.to_thread(sys.stdin.readline)
        token = hashlib.blake2b((await client.token()).encode(), digest_size=8).hexdigest()
        tell(json.dumps({"token": token, "price": (await client.price("005930")).price}))


asyncio.run(main())
