"""
The same objects for scripts and notebooks: blocking, through one background loop, with the same names and errors.

    from aegis import Config, sync

    with sync.Runtime(Config.load()) as rt:
        rt.limiter.wait(KIS_RATE_LIMIT, key=account)

Each class is derived from its async class when this module is imported (`_derive.py`); nothing is written twice.
Objects may be shared between threads, and work inside a notebook whose own loop is running. Functions that you pass
(a loader, `run_tx`) are plain functions, run in a thread. Ctrl-C cancels the call that is under way, which cleans up
behind itself. `__init__.pyi` tells type checkers what is here; `make docs` renews it, and a test holds it.
"""

from __future__ import annotations

from aegis import runtime
from aegis.database import client, listen, stream, transaction
from aegis.http import client as http_client
from aegis.http import stream as http_stream
from aegis.redis import cache, pubsub, ratelimit
from aegis.redis import client as redis_client
from aegis.sync._derive import derive
from aegis.upstream import dart, kis, naver

Runtime = derive(runtime.Runtime)
Redis = derive(redis_client.Redis)
RateLimiter = derive(ratelimit.RateLimiter)
Cache = derive(cache.Cache)
PubSub = derive(pubsub.PubSub)
Subscription = derive(pubsub.Subscription, is_given=True)
Database = derive(client.Database)
Transaction = derive(transaction.Transaction, is_given=True)
Listener = derive(listen.Listener, is_given=True)
Stream = derive(stream.Stream, is_given=True)
HttpClient = derive(http_client.HttpClient)
StreamedResponse = derive(http_stream.StreamedResponse, is_given=True)
KisClient = derive(kis.KisClient)
DartClient = derive(dart.DartClient)
NaverClient = derive(naver.NaverClient)

__all__ = [
    "Cache",
    "DartClient",
    "Database",
    "HttpClient",
    "KisClient",
    "Listener",
    "NaverClient",
    "PubSub",
    "RateLimiter",
    "Redis",
    "Runtime",
    "Stream",
    "StreamedResponse",
    "Subscription",
    "Transaction",
]
