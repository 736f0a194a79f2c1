"""The first example of the README: a shared limit, the cache, the pool, on servers that start with it."""

import asyncio

from aegis import Config, Runtime
from aegis.upstream import KIS_RATE_LIMIT


async def main() -> None:
    async with Runtime(Config.load({"REDIS_URL": "embedded:", "DATABASE_URL": "embedded:"})) as rt:
        for _ in range(6):
            waited = await rt.limiter.wait(KIS_RATE_LIMIT, key="my account")
            print(f"permit after {waited:.2f} s")  # the sixth waits: five a second, over all processes
        await rt.cache.set("stock:005930", {"name": "삼성전자"}, ttl=60)
        print(await rt.cache.get("stock:005930", dict))
        print(await rt.db.fetch_value("select 'one round trip'"))


asyncio.run(main())
