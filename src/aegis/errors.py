"""
Everything that can go wrong, as one tree.

Each room raises only classes of this module at its edge and chains its driver's error (`raise ... from exc`). Where a
builtin means the same, it is a second parent, so `except ConnectionError` and `except TimeoutError` work as readers
expect. "You closed it" and "it broke" are different classes. Every constructor passes its arguments to
`super().__init__`, so errors survive pickling between processes; messages are built in `__str__`
and never hold a secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class AegisError(Exception):
    """The root: catch it to catch everything that aegis raises on purpose."""


class ClosedError(AegisError):
    """
    You use an object that you have closed, or have not opened yet. Nothing was sent.

    Closing an `HttpClient` ends with it also those calls in progress that may be repeated.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"{self.what} is not open; use it inside its `async with`"


class WrongThreadError(AegisError, RuntimeError):
    """A blocking call on the thread of the background loop would wait for itself for ever. Nothing was sent."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return f"{self.what} was called on its own background thread; iterate over your rows first, then pass them"


class PortTakenError(AegisError, OSError):
    """A port that we were told to listen on cannot be had. `port` 0 would take any free one."""

    def __init__(self, what: str, port: int, reason: str) -> None:
        super().__init__(what, port, reason)
        self.what, self.port, self.reason = what, port, reason

    def __str__(self) -> str:
        return f"the {self.what} cannot listen on port {self.port}: {self.reason}; choose another, or 0 for a free one"


class MetricsDirectoryError(AegisError, OSError):
    """The directory in which the processes of a METRICS_PORT find each other is not ours alone."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path

    def __str__(self) -> str:
        return f"{self.path} must be a directory of this user that nobody else can enter (mode 0700); remove it"


# --- config -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One thing that is wrong with the configuration. `str()` of it is one line; no part of it holds a secret."""

    variable: str  #: its name; of a line that cannot be read, where that stands
    reason: str  #: what is wrong, and where it is not evident, what to do
    value: str | None = None  #: the text that was found; None when it is a secret, or when there is none
    source: str = ""  #: `environment`, `.env:12`, `file /path`, `argument`, `default`
    kind: str = "invalid"  #: invalid, conflict, unknown, unreadable, malformed, missing
    suggestion: str = ""  #: the name or word that was probably meant
    against: str = ""  #: of a conflict: the other variable

    def __str__(self) -> str:
        hint = f"; did you mean {self.suggestion}?" if self.suggestion else ""
        got = "" if self.value is None else f", got {self.value!r}"
        source = f" (source {self.source})" if self.source else ""
        return f"{self.variable}: {self.reason}{hint}{got}{source}"


class ConfigError(AegisError, ValueError):
    """
    The configuration cannot be used. `problems` lists every one that was found, each a line that names its variable.

    `details` are the same as records, for programs. No line and no record holds the value of a secret.
    """

    def __init__(self, problems: Sequence[str | ConfigProblem]) -> None:
        super().__init__(tuple(problems))
        self.problems = tuple(str(problem) for problem in problems)
        self.details = tuple(
            ConfigProblem(*problem.partition(": ")[::2]) if isinstance(problem, str) else problem
            for problem in problems
        )

    def __str__(self) -> str:
        count = len(self.problems)
        heading = f"{count} problem{'s' * (count != 1)} in the configuration:"
        return "\n  ".join((heading, *self.problems))


class MissingSettingError(ConfigError):
    """A room was opened that cannot work without this variable."""

    def __init__(self, room: str, variable: str) -> None:
        super().__init__((ConfigProblem(variable, f"not set, but {room} needs it", kind="missing"),))
        self.args = (room, variable)  # so that it survives pickling
        self.room, self.variable = room, variable


# --- embedded servers -------------------------------------------------------------------------------------------------


class ServerStartError(AegisError):
    """An embedded server did not come up. Nothing is left running. `log` holds the end of what it printed."""

    def __init__(self, server: str, reason: str, log: str = "") -> None:
        super().__init__(server, reason, log)
        self.server, self.reason, self.log = server, reason, log

    def __str__(self) -> str:
        tail = f"; its last words: {self.log.strip()}" if self.log.strip() else ""
        return f"embedded {self.server} did not start: {self.reason}{tail}"


# --- redis ------------------------------------------------------------------------------------------------------------


class RedisError(AegisError):
    """Anything that went wrong between a room and the Redis server."""


class RedisUnavailableError(RedisError, ConnectionError):
    """
    The server could not be asked: refused, not found, hung, or it refused the login. The command was not sent.

    You do not get this when a command may have been executed: that is `ServerLostError`.
    """

    def __init__(self, address: str, cause: str) -> None:
        super().__init__(address, cause)
        self.address, self.cause = address, cause

    def __str__(self) -> str:
        return f"Redis at {self.address} is unavailable: {self.cause}"


class ServerLostError(RedisError, ConnectionError):
    """The connection was lost with the command in flight: whether it was executed is unknown. It was not re-sent."""

    def __init__(self, address: str, command: str, cause: str) -> None:
        super().__init__(address, command, cause)
        self.address, self.command, self.cause = address, command, cause

    def __str__(self) -> str:
        return f"connection to Redis at {self.address} was lost during {self.command}: {self.cause}; outcome unknown"


class ReplyTimeoutError(ServerLostError, TimeoutError):
    """The command was sent and no reply came in time: whether it was or will be executed is unknown. Not re-sent."""

    def __str__(self) -> str:
        return f"Redis at {self.address} did not answer {self.command}: {self.cause}; outcome unknown"


class ServerReplyError(RedisError):
    """The server answered with an error; the command had no effect. `code` is its first word (`WRONGTYPE`, `OOM`)."""

    def __init__(self, command: str, message: str) -> None:
        super().__init__(command, message)
        self.command, self.message = command, message
        self.code = message.split(" ", 1)[0]

    def __str__(self) -> str:
        return f"Redis refused {self.command}: {self.message}"


class CommandNotAllowedError(RedisError, ValueError):
    """The command blocks, subscribes, or changes the connection, so it must not share it. Nothing was sent."""

    def __init__(self, command: str) -> None:
        super().__init__(command)
        self.command = command

    def __str__(self) -> str:
        return f"{self.command} blocks or changes the shared connection; use redis.raw for it"


# --- rate limiter -----------------------------------------------------------------------------------------------------


class RateLimitTimeoutError(AegisError, TimeoutError):
    """No permit can be had within the timeout. Nothing was consumed. `retry_after_s`: when one is expected, seconds."""

    def __init__(self, limit: str, timeout_s: float, retry_after_s: float) -> None:
        super().__init__(limit, timeout_s, retry_after_s)
        self.limit, self.timeout_s, self.retry_after_s = limit, timeout_s, retry_after_s

    def __str__(self) -> str:
        return f"limit {self.limit!r} has no permit within {self.timeout_s:.3f} s; next in {self.retry_after_s:.3f} s"


class TooManyWaitersError(AegisError):
    """So many callers wait for permits in this process that one more is refused. Nothing was asked or consumed."""

    def __init__(self, limit: str, waiting_max: int) -> None:
        super().__init__(limit, waiting_max)
        self.limit, self.waiting_max = limit, waiting_max

    def __str__(self) -> str:
        return (
            f"limit {self.limit!r}: {self.waiting_max} callers wait in this process already; begin fewer at a time, or "
            f"give the RateLimiter a higher waiting_max"
        )


class RateLimitLayoutError(RedisError):
    """
    Another version of aegis keeps this limit on the same Redis in a layout that this one cannot read.

    Nothing was read, granted or changed. Run one of the two versions; when none of the other is left, the limit's keys
    expire by themselves, or `reset` them.
    """

    def __init__(self, limit: str, found: int, known: int) -> None:
        super().__init__(limit, found, known)
        self.limit, self.found, self.known = limit, found, known

    def __str__(self) -> str:
        return (
            f"limit {self.limit!r} is kept in layout {self.found} by another version of aegis; this one knows layout "
            f"{self.known} and granted nothing: run one version against this Redis"
        )


# --- cache ------------------------------------------------------------------------------------------------------------


class CacheError(AegisError):
    """What the cache itself raises; an outage of Redis is not among it unless you ask for that (`on_outage`)."""


class CacheTypeError(CacheError, TypeError):
    """The value of `key` cannot be stored: msgspec cannot encode it, or it is not of the declared type."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return f"cache key {self.key!r}: {self.reason}"


class LoadTimeoutError(CacheError, TimeoutError):
    """The loader of `key` did not return in time; it was cancelled, and the key is free for another load."""

    def __init__(self, key: str, timeout_s: float) -> None:
        super().__init__(key, timeout_s)
        self.key, self.timeout_s = key, timeout_s

    def __str__(self) -> str:
        return f"the loader of cache key {self.key!r} did not return within {self.timeout_s:g} s"


class LoadFailedError(CacheError):
    """The loader of `key` failed in another process, with an error that this one cannot rebuild, or was cancelled."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return f"the load of cache key {self.key!r} failed: {self.reason}"


# --- pub/sub ----------------------------------------------------------------------------------------------------------


class BroadcastError(AegisError):
    """What the broadcast itself raises; an outage of Redis is not among it, because publishing outlasts one."""


class PayloadError(BroadcastError, ValueError):
    """The value of `key` cannot be published as JSON, or what arrived does not fit the subscription's `type`."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return f"broadcast key {self.key!r}: {self.reason}"


class TopicPartitionsError(BroadcastError, ValueError):
    """The processes of a topic do not agree on its partitions, so they would not meet. Nothing was sent."""

    def __init__(self, topic: str, wanted: int, found: int, key: str) -> None:
        super().__init__(topic, wanted, found, key)
        self.topic, self.wanted, self.found, self.key = topic, wanted, found, key

    def __str__(self) -> str:
        return (
            f"topic {self.topic!r} has partitions: {self.found}, by the key {self.key!r}, and this process asks for "
            f"{self.wanted}; give all its processes the same REDIS_TOPIC_PARTITIONS, or to change it end them all and "
            "delete the key"
        )


class OutboxFullError(BroadcastError, TimeoutError):
    """The tick was not published: `pending` older ones wait for Redis, and none left within the timeout."""

    def __init__(self, topic: str, pending: int, timeout_s: float, cause: str) -> None:
        super().__init__(topic, pending, timeout_s, cause)
        self.topic, self.pending, self.timeout_s, self.cause = topic, pending, timeout_s, cause

    def __str__(self) -> str:
        return (
            f"topic {self.topic!r}: no room in the outbox within {self.timeout_s:g} s, {self.pending} ticks wait; "
            f"{self.cause or 'the publisher is faster than Redis'}"
        )


class UnsentTicksError(BroadcastError, TimeoutError):
    """Redis did not take the last `pending` ticks in time. After the bus is left they are lost."""

    def __init__(self, topic: str, pending: int, timeout_s: float, cause: str) -> None:
        super().__init__(topic, pending, timeout_s, cause)
        self.topic, self.pending, self.timeout_s, self.cause = topic, pending, timeout_s, cause

    def __str__(self) -> str:
        why = f": {self.cause}" if self.cause else ""
        return f"topic {self.topic!r}: {self.pending} ticks were not taken by Redis within {self.timeout_s:g} s{why}"


class SlowConsumerError(BroadcastError):
    """The subscription ended, as chosen by `overflow="end"`: its ring of `ring` updates was full."""

    def __init__(self, topic: str, ring: int) -> None:
        super().__init__(topic, ring)
        self.topic, self.ring = topic, ring

    def __str__(self) -> str:
        return f"topic {self.topic!r}: the consumer fell over {self.ring} updates behind, so its subscription ended"


# --- http -------------------------------------------------------------------------------------------------------------


_STOPPED_BY = {
    "circuit": "the circuit is open by now",
    "limiter": "no permit can be had in time",
    "deadline": "the deadline is too near",
    "budget": "the retry budget is spent",
}


class HttpError(AegisError):
    """
    A call over HTTP did not end well. The URL is already redacted.

    `attempts` counts the requests that were tried, `history` describes each of them, `response` is the last answer
    where one came, `code` the upstream's own code, `retry_after` seconds where the upstream named any. `stopped_by`
    names what kept a further attempt from being made: `circuit`, `limiter`, `deadline` or `budget`.
    """

    #: Class-wide default; set on the one error where it applies, and kept by pickling.
    stopped_by = ""

    def __init__(  # noqa: PLR0917 - positional, so that the arguments survive pickling
        self,
        detail: str,
        method: str = "",
        url: str = "",
        attempts: int = 0,
        response: Any = None,
        history: Sequence[Any] = (),
        code: str = "",
        retry_after: float | None = None,
        *,
        retry_budget_exhausted: bool = False,
    ) -> None:
        super().__init__(detail, method, url, attempts, response, tuple(history), code, retry_after)
        self.detail, self.method, self.url, self.attempts = detail, method, url, attempts
        self.response, self.history, self.code, self.retry_after = response, tuple(history), code, retry_after
        self.retry_budget_exhausted = retry_budget_exhausted

    def __str__(self) -> str:
        code = f" [{self.code}]" if self.code else ""
        stopped = f"; no further attempt: {_STOPPED_BY[self.stopped_by]}" if self.stopped_by else ""
        return f"{self.method} {self.url} (attempt {self.attempts}): {self.detail}{code}{stopped}"


class HttpStatusError(HttpError):
    """`raise_for_status()` met a status of 400 or above."""


class ThrottledError(HttpError):
    """The upstream says: too fast. The request was not executed; `retry_after` says when, if the upstream did."""


class TransientError(HttpError):
    """The upstream failed in a way that passes by itself; all attempts that were allowed have been made."""


class HttpConnectionError(TransientError, ConnectionError):
    """No connection, or it broke, and repeating the call is safe."""


class HttpTimeoutError(TransientError, TimeoutError):
    """The call's total deadline passed, or its last attempt ran out of time."""


class UnauthorizedError(HttpError):
    """The upstream did not accept the credentials, also not renewed ones where there was a way to renew them."""


class RejectedError(HttpError):
    """The upstream understood the request and refused it. Repeating it unchanged gives the same answer."""


class AmbiguousOutcomeError(HttpError):
    """
    Whether the request was executed is unknown: it left, and no trustworthy answer came. It was not sent again.

    Look before you repeat it; for an order, ask the upstream for its fills.
    """


class CircuitOpenError(HttpError, ConnectionError):
    """The upstream failed too often lately, so nothing was sent and no permit was spent; see `retry_after`."""


class BodyTooLargeError(HttpError):
    """The response body is larger than the cap; reading stopped there."""


class OneShotBodyError(RejectedError, TypeError):
    """The body can be read only once, but the request may have to be sent again. Nothing was sent."""


class BodyDecodeError(HttpError, ValueError):
    """The response body is not what was expected: its charset, its compression or its shape."""


class CassetteError(AegisError):
    """A recording cannot be used: it cannot be read, or it holds no answer to a request. Nothing was sent."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"cassette {self.path}: {self.reason}"


class SecretInCassetteError(CassetteError):
    """A secret would have been written into a recording, so it was not saved."""


# --- database ---------------------------------------------------------------------------------------------------------


class DatabaseError(AegisError):
    """Anything that went wrong between a room and PostgreSQL."""


class DatabaseUnavailableError(DatabaseError, ConnectionError):
    """No connection could be opened: refused, not found, hung, or the login was refused. Nothing was sent."""

    def __init__(self, address: str, cause: str) -> None:
        super().__init__(address, cause)
        self.address, self.cause = address, cause

    def __str__(self) -> str:
        return f"PostgreSQL at {self.address} is unavailable: {self.cause}"


class DatabaseLostError(DatabaseError, ConnectionError):
    """The connection was lost during a statement: whether it took effect is unknown. It was not re-sent."""

    def __init__(self, address: str, cause: str) -> None:
        super().__init__(address, cause)
        self.address, self.cause = address, cause

    def __str__(self) -> str:
        return f"connection to PostgreSQL at {self.address} was lost: {self.cause}; outcome unknown"


class CommitOutcomeUnknownError(DatabaseLostError):
    """
    Whether a transaction is stored is unknown. Look before you repeat it.

    The connection was lost during COMMIT, or the wait for a synchronous standby was broken off: then it is stored on a
    primary whose failover would lose it.
    """

    def __str__(self) -> str:
        return f"PostgreSQL at {self.address} may have stored the transaction or not: {self.cause}"


class PoolTimeoutError(DatabaseError, TimeoutError):
    """No connection became free in time. Nothing was sent. `state` is the pool in words."""

    def __init__(self, timeout_s: float, state: str) -> None:
        super().__init__(timeout_s, state)
        self.timeout_s, self.state = timeout_s, state

    def __str__(self) -> str:
        return f"no database connection within {self.timeout_s:.1f} s: {self.state}; raise DB_MAX_CONNS or hold shorter"


class PoolFullError(DatabaseError):
    """More callers wait than DB_MAX_WAITING allows, so this one was refused at once. Nothing was sent."""

    def __init__(self, max_waiting: int, state: str) -> None:
        super().__init__(max_waiting, state)
        self.max_waiting, self.state = max_waiting, state

    def __str__(self) -> str:
        return f"{self.max_waiting} callers already wait for a database connection: {self.state}"


class QueryError(DatabaseError):
    """The server refused a statement; it had no effect. `sqlstate` is its five-letter code."""

    def __init__(self, sqlstate: str, message: str) -> None:
        super().__init__(sqlstate, message)
        self.sqlstate, self.message = sqlstate, message

    def __str__(self) -> str:
        return f"PostgreSQL refused the statement ({self.sqlstate}): {self.message}"


class RowShapeError(DatabaseError, TypeError):
    """The columns of a row do not fit the asked type; both sides are named."""

    def __init__(self, type_name: str, missing: Sequence[str], extra: Sequence[str]) -> None:
        super().__init__(type_name, tuple(missing), tuple(extra))
        self.type_name, self.missing, self.extra = type_name, tuple(missing), tuple(extra)

    def __str__(self) -> str:
        return f"columns do not fit {self.type_name}: missing {list(self.missing)}, extra {list(self.extra)}"


class DirectConnectionError(DatabaseError):
    """`what` needs a session of its own, which a pgbouncer does not keep. Nothing was sent."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return (
            f"{self.what} does not work through a pgbouncer (DB_PGBOUNCER=true): "
            "give this process a DATABASE_URL that leads straight to PostgreSQL"
        )


class MigrationError(DatabaseError):
    """A migration was refused or failed; `file` names it. It left nothing behind; files before it stay applied."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(file, reason)
        self.file, self.reason = file, reason

    def __str__(self) -> str:
        return f"migration {self.file}: {self.reason}"


# --- upstream ---------------------------------------------------------------------------------------------------------


class TokenRefusedError(UnauthorizedError):
    """
    KIS issued no access token, so nothing that needs one was sent.

    `code` is KIS's own, where it gave one (EGW00133: the last token is less than a minute old). `retry_after` is None
    where waiting does not help, because the credentials are wrong.
    """

    def __init__(self, code: str, reason: str, retry_after: float | None) -> None:
        super().__init__(reason, code=code, retry_after=retry_after)
        self.args = (code, reason, retry_after)  # plain, so that other processes which wait for the token can be told

    def __str__(self) -> str:
        code = f" [{self.code}]" if self.code else ""
        again = f"try again in {self.retry_after:.0f} s" if self.retry_after else "check KIS_APP_KEY and KIS_APP_SECRET"
        return f"KIS issued no access token: {self.detail}{code}; {again}"


class ReplayError(AegisError, ValueError):
    """A file of daily bars cannot be replayed: which file, which line (0: the file as a whole), what was expected."""

    def __init__(self, path: str, line: int, expected: str) -> None:
        super().__init__(path, line, expected)
        self.path, self.line, self.expected = path, line, expected

    def __str__(self) -> str:
        place = f"{self.path}, line {self.line}" if self.line else self.path
        return f"cannot replay {place}: expected {self.expected}"


# --- demo -------------------------------------------------------------------------------------------------------------


class DemoError(AegisError):
    """A process of the demo failed or fell silent. Everything that was started has been ended."""

    def __init__(self, process: str, reason: str, log: str = "") -> None:
        super().__init__(process, reason, log)
        self.process, self.reason, self.log = process, reason, log

    def __str__(self) -> str:
        tail = f"; its last words: {self.log}" if self.log else ""
        return f"the {self.process} failed: {self.reason}{tail}"
