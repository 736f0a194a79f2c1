"""
Which commands may share a connection with everybody else's.

Not those that block it (BLPOP), turn it into a stream of pushes (SUBSCRIBE, MONITOR), or change what it means for the
next caller (SELECT, MULTI, CLIENT REPLY). List read from the command tables of Valkey 9.0 and Redis 8, 2026-11-24.
"""

from __future__ import annotations

from collections.abc import Sequence

from aegis.errors import CommandNotAllowedError

Argument = str | bytes | int | float
Command = Sequence[Argument]

_BLOCK = {"BLPOP", "BRPOP", "BRPOPLPUSH", "BLMOVE", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "BZMPOP", "WAIT", "WAITAOF"}
_PUSH = {"SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE", "MONITOR"}
_REPLICATE = {"SYNC", "PSYNC", "REPLCONF"}
_CHANGE = {"AUTH", "HELLO", "SELECT", "RESET", "QUIT", "ASKING", "READONLY", "READWRITE"}
_TRANSACT = {"MULTI", "EXEC", "DISCARD", "WATCH", "UNWATCH"}
_NEVER = frozenset(_BLOCK | _PUSH | _REPLICATE | _CHANGE | _TRANSACT)
_CLIENT_CHANGES = {
    "REPLY",
    "TRACKING",
    "CACHING",
    "SETNAME",
    "SETINFO",
    "NO-EVICT",
    "NO-TOUCH",
    "CAPA",
    "IMPORT-SOURCE",
}
_NEVER_SUBCOMMANDS = {"CLIENT": frozenset(_CLIENT_CHANGES), "SCRIPT": frozenset({"DEBUG"})}
_MAY_BLOCK = frozenset({"XREAD", "XREADGROUP"})  # with the option BLOCK
_SPELLINGS_MAX = 1000

#: Spellings of names that need no second look: the hot path asks this set and nothing else.
harmless: set[Argument] = set()


def check_shareable(args: Command) -> None:
    """
    Return when the command may be sent on the shared connection; remembers the name when its arguments cannot matter.

    Raises:
        CommandNotAllowedError: it may not. Nothing was sent.
        ValueError: there is no command.
    """
    if not args:
        raise ValueError("a command needs at least its name")
    name = _upper(args[0])
    if name in _NEVER:
        raise CommandNotAllowedError(name)
    if name in _NEVER_SUBCOMMANDS:
        subcommand = _upper(args[1]) if len(args) > 1 else ""
        if subcommand in _NEVER_SUBCOMMANDS[name]:
            raise CommandNotAllowedError(f"{name} {subcommand}")
    elif name in _MAY_BLOCK:
        options = [_upper(arg) for arg in args[1:]]
        if options[:1] == ["GROUP"]:
            options = options[3:]  # a group or a consumer may be called like an option
        options = options[: options.index("STREAMS")] if "STREAMS" in options else options
        if "BLOCK" in options:
            raise CommandNotAllowedError(f"{name} BLOCK")
    elif len(harmless) < _SPELLINGS_MAX:
        harmless.add(args[0])


def command_name(args: Command) -> str:
    """The command's first word as text, for messages."""
    return _upper(args[0])


def _upper(arg: Argument) -> str:
    return (arg.decode("latin-1") if isinstance(arg, bytes) else str(arg)).upper()
