"""The records of the pool: a lease (one connection and who has it), and the counters that `stats()` freezes."""

from __future__ import annotations

from dataclasses import dataclass

from aegis.database._driver import Conn
from aegis.database._session import Trace
from aegis.database._site import Site


@dataclass(slots=True, eq=False)
class Lease:
    """One open connection; times are on the monotonic clock."""

    conn: Conn
    opened_at: float
    expires_at: float
    idle_since: float
    held_since: float = 0.0
    site: Site = ()  #: who holds it
    trace: Trace = Trace.NONE  #: what the present holder left in the session
    broken: bool = False  #: a statement was interrupted; nobody knows what the server does now
    readonly: bool = False  #: the holder asked for a read-only transaction
    reported: bool = False  #: as held for too long


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Present sizes, and counters since the pool was opened. Durations are summed seconds."""

    total: int  #: connections that count against `max`: idle, active, connecting and closing
    idle: int
    active: int  #: handed out
    connecting: int
    closing: int  #: being reset or closed after use
    waiting: int
    max: int
    acquired: int
    acquire_wait_s: float
    waited: int  #: acquires that found no idle connection
    waited_s: float
    canceled: int  #: acquires whose caller was cancelled while it waited
    timeouts: int
    refused: int  #: sent away at once, because too many waited
    opened: int
    connect_failures: int
    closed_by_lifetime: int
    closed_by_idle_time: int
    closed_dirty: int  #: came back inside a transaction, or interrupted
    lost: int  #: found dead
    resets: int
    leaks: int  #: reported as held for too long


@dataclass(slots=True)
class Counters:
    """The counting half of `PoolStats`, under the same names."""

    acquired: int = 0
    acquire_wait_s: float = 0.0
    waited: int = 0
    waited_s: float = 0.0
    canceled: int = 0
    timeouts: int = 0
    refused: int = 0
    opened: int = 0
    connect_failures: int = 0
    closed_by_lifetime: int = 0
    closed_by_idle_time: int = 0
    closed_dirty: int = 0
    lost: int = 0
    resets: int = 0
    leaks: int = 0
