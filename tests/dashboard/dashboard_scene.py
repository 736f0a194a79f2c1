"""What a collector does beside a dashboard that is live."""

from __future__ import annotations

from dataclasses import dataclass

from aegis.dashboard import Dashboard
from aegis.redis import Rate, RateLimit
from aegis.runtime import Runtime
from aegis.upstream import KIS_RATE_LIMIT

APP_KEY = "AppKeyThatNobodySees"
OWN = RateLimit("orders", Rate(3, per=60.0))  #: a limit that aegis does not know by itself
API_KEY = "0123456789abcdef" * 2 + "01234567"


@dataclass
class Scene:
    """The page, and another process's rooms on the same servers."""

    page: Dashboard
    rt: Runtime

    async def quote(self, code: str, name: str, price: int, change: int) -> None:
        quote = {"code": code, "name": name, "price": price, "change": change, "volume": 12345, "source": "kis"}
        await self.rt.bus.publish(code, quote, urgent=True)

    async def take_permits(self, count: int) -> None:
        for _ in range(count):
            await self.rt.limiter.allow(KIS_RATE_LIMIT, key=APP_KEY)
