"""The number of partitions of a topic, kept in Redis: processes that disagree would miss each other in silence."""

from __future__ import annotations

from aegis.errors import TopicPartitionsError
from aegis.redis.broadcast.wire import Names
from aegis.redis.client import Redis

_TIMEOUT_S = 1.0
#: The number outlasts the topic's last process by so long.
_KEEP_S = 7 * 86_400


async def agree(redis: Redis, names: Names) -> None:
    """
    Return when all processes of the topic have the same number of partitions; the first one sets it.

    Raises:
        TopicPartitionsError: another one has set another number.
        RedisError: the server could not be asked.
    """
    await redis.execute("SET", names.agreed, names.partitions, "NX", timeout=_TIMEOUT_S, idempotent=True)
    found = await redis.execute("GETEX", names.agreed, "EX", _KEEP_S, timeout=_TIMEOUT_S, idempotent=True)
    if found is not None and int(found) != names.partitions:
        raise TopicPartitionsError(names.topic, names.partitions, int(found), names.agreed)
