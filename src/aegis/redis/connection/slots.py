"""
Which of the 16,384 slots of a cluster a command belongs to.

A key's slot is CRC16 (XMODEM) of what stands between its first `{` and the next `}`, or of the whole key. Where a
command has its first key is read from the command tables of Valkey 9.0 and Redis 8, 2026-11-24: in most it is the first
argument; the tables here are the others.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterable

from aegis.redis.connection.shared import Argument, Command, command_name

SLOTS = 16_384

_KEYLESS = frozenset(
    [
        "ACL",
        "AUTH",
        "BGREWRITEAOF",
        "BGSAVE",
        "CLIENT",
        "CLUSTER",
        "COMMAND",
        "COMMANDLOG",
        "CONFIG",
        "DBSIZE",
        "DISCARD",
        "ECHO",
        "EXEC",
        "FAILOVER",
        "FLUSHALL",
        "FLUSHDB",
        "FUNCTION",
        "HELLO",
        "INFO",
        "KEYS",
        "LASTSAVE",
        "LATENCY",
        "LOLWUT",
        "MODULE",
        "MULTI",
        "PING",
        "PUBLISH",
        "PUBSUB",
        "RANDOMKEY",
        "ROLE",
        "SAVE",
        "SCAN",
        "SCRIPT",
        "SHUTDOWN",
        "SLOWLOG",
        "SWAPDB",
        "TIME",
        "UNWATCH",
    ]
)
#: Where the first key stands: after a subcommand or an operation, or after the number of keys.
_SECOND = frozenset(
    [
        "BITOP",
        "LMPOP",
        "MEMORY",
        "OBJECT",
        "SINTERCARD",
        "XGROUP",
        "XINFO",
        "ZDIFF",
        "ZINTER",
        "ZINTERCARD",
        "ZMPOP",
        "ZUNION",
    ]
)
_COUNTED = frozenset(["EVAL", "EVAL_RO", "EVALSHA", "EVALSHA_RO", "FCALL", "FCALL_RO"])
_AFTER_STREAMS = frozenset(["XREAD", "XREADGROUP"])

#: Commands about everything: sent to every primary.
EVERYWHERE = frozenset(("DBSIZE", "FLUSHALL", "FLUSHDB", "KEYS"))
EVERYWHERE_SUBCOMMANDS = {"CONFIG": {"SET", "RESETSTAT"}, "SCRIPT": {"LOAD", "FLUSH"}, "FUNCTION": {"LOAD", "FLUSH"}}


def slot_of_key(key: Argument) -> int:
    """The slot of one key."""
    raw = key if isinstance(key, bytes) else str(key).encode()
    start = raw.find(b"{")
    if start >= 0:
        end = raw.find(b"}", start + 1)
        if end > start + 1:
            raw = raw[start + 1 : end]
    return crc_hqx(raw, 0) % SLOTS


def slot_of(args: Command) -> int | None:
    """The slot of a command's first key; None when it has no key, so that any node will do."""
    name = command_name(args)
    at = 1
    if name == "PUBSUB" and len(args) > 2 and command_name(args[1:]) == "SHARDNUMSUB":
        return slot_of_key(args[2])
    if name in _KEYLESS:
        return None
    if name in _SECOND:
        at = 2
    elif name in _COUNTED:
        at = 3 if len(args) > 2 and int(args[2]) > 0 else len(args)
    elif name in _AFTER_STREAMS:
        at = next((at + 1 for at, arg in enumerate(args) if command_name((arg,)) == "STREAMS"), len(args))
    return slot_of_key(args[at]) if at < len(args) else None


def is_everywhere(args: Command) -> bool:
    """Whether the command is about all nodes."""
    name = command_name(args)
    subcommands = EVERYWHERE_SUBCOMMANDS.get(name)
    return name in EVERYWHERE or (subcommands is not None and len(args) > 1 and command_name(args[1:]) in subcommands)


def one_slot(commands: Iterable[Command]) -> int | None:
    """
    The slot of all the commands; None when none of them has a key.

    Raises:
        ValueError: there are several.
    """
    slots = {slot for command in commands if (slot := slot_of(command)) is not None}
    if len(slots) > 1:
        raise ValueError(f"a transaction on a cluster needs keys of one slot, not of {len(slots)}: give them a {{tag}}")
    return next(iter(slots), None)
