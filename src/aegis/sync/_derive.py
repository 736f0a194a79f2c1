"""
Blocking classes out of async ones: every public member of the async class becomes one that goes through the portal.

    coroutine function        a method that returns when it has ended
    async context manager     a context manager, entered and left by one task
    async iterator            an iterator
    function, property        the same, run on the loop's thread, where the object lives

What goes in is translated as well: a blocking object becomes its async original, and a function that the async class
would await becomes one that runs in a thread. What comes out is translated back. Nothing is named here but the classes
themselves, so a method that is added to an async class is there at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import types
import typing
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, Self

from aegis.errors import ClosedError
from aegis.sync._portal import Held, portal

#: What a blocking class cannot offer, and where to go instead.
NOT_OFFERED = {
    ("Redis", "raw"): "take redis.Redis of redis-py, which blocks by itself",
    ("Database", "raw"): "it is asyncpg's own connection, which only works inside an event loop",
}

twins: dict[type, type[Blocking]] = {}
given: set[type] = set()  #: those that users get and never build
_living: weakref.WeakValueDictionary[int, Blocking] = weakref.WeakValueDictionary()


class Blocking:
    """The blocking form of one object of aegis. Safe to share between threads."""

    _original: Any
    _held: Held | None = None

    def __repr__(self) -> str:
        return f"<sync {self._original!r}>"

    def __getattr__(self, name: str) -> Any:
        """Attributes that the async object has and its class does not declare."""
        instead = NOT_OFFERED.get((type(self).__name__, name))
        if instead is not None:
            raise AttributeError(f"aegis.sync.{type(self).__name__} has no {name}: {instead}")
        if name.startswith("_"):
            raise AttributeError(name)
        return portal().plain(lambda: blocking(getattr(self._original, name)))

    def _enter(self) -> Any:
        held = Held(self._original)
        entered = portal().await_(held.enter)
        self._held = held
        return blocking(entered)

    def _exit(self, kind: Any, exc: Any, tb: Any) -> Any:
        held, self._held = self._held, None
        if held is None:
            raise ClosedError(type(self).__name__)
        return portal().await_(functools.partial(held.leave, kind, exc, tb))


def derive(original: type, *, is_given: bool = False) -> Any:
    """The blocking twin of an async class; of one that other objects give, it cannot be built."""
    if is_given:
        given.add(original)
    members: dict[str, Any] = {
        "__doc__": f"The blocking form of `{original.__module__}.{original.__name__}`.\n\n{inspect.getdoc(original)}",
        "__init__": _no_constructor if is_given else _constructor(original),
        "__module__": "aegis.sync",
        "__qualname__": original.__name__,
    }
    for name, member in inspect.getmembers_static(original):
        if (original.__name__, name) in NOT_OFFERED:
            continue
        if name == "__aenter__":
            members |= {"__enter__": Blocking._enter, "__exit__": Blocking._exit}  # noqa: SLF001
        elif name == "__aiter__":
            members["__iter__"] = _iter
        elif name == "__anext__":
            members["__next__"] = _next
        elif not name.startswith("_"):
            made = _member(name, member)
            if made is not None:
                members[name] = made
    twin = type(original.__name__, (Blocking,), members)
    twins[original] = twin
    return twin


def _constructor(original: type) -> Any:
    declared = vars(original).get("__init__", object.__init__)

    @functools.wraps(declared)
    def __init__(self: Blocking, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        call = _bound(original, declared, args, kwargs)
        self._original = portal().plain(call)
        _living[id(self._original)] = self

    return __init__


def _no_constructor(self: Blocking, *_: Any, **__: Any) -> None:
    raise TypeError(f"{type(self).__name__} is not built, it is given by other objects")


def _member(name: str, member: Any) -> Any:
    if isinstance(member, property):
        return property(
            lambda self: portal().plain(lambda: blocking(getattr(self._original, name))), doc=member.__doc__
        )
    if not inspect.isfunction(member):
        return None  # data of the class: `__getattr__` finds it
    inner = inspect.unwrap(member)
    if inspect.isasyncgenfunction(inner) and inner is not member:
        return _method(member, _context)
    if inspect.isasyncgenfunction(member):
        return _method(member, _iterated)
    return _method(member, _called)


def _method(member: Any, how: Callable[[Callable[[], Any]], Any]) -> Any:
    @functools.wraps(member)
    def method(self: Blocking, *args: Any, **kwargs: Any) -> Any:
        return how(_bound(functools.partial(member, self._original), member, args, kwargs))

    return method


def _called(call: Callable[[], Any]) -> Any:
    """Run it on the loop; if an awaitable comes out, to its end."""

    async def awaited() -> Any:
        result = call()
        return blocking(await result if inspect.isawaitable(result) else result)

    return portal().await_(awaited)


@contextlib.contextmanager
def _context(call: Callable[[], Any]) -> Iterator[Any]:
    held = Held(portal().plain(call))
    value = portal().await_(held.enter)
    try:
        yield blocking(value)
    except BaseException as exc:
        if not portal().await_(functools.partial(held.leave, type(exc), exc, exc.__traceback__)):
            raise
    else:
        portal().await_(functools.partial(held.leave, None, None, None))


class _Iterated:
    """An async iterator, one item a call. Closing it (or leaving the loop that holds it last) closes the other."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        try:
            return blocking(portal().await_(self._iterator.__anext__))
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """End it early."""
        if hasattr(self._iterator, "aclose"):
            portal().await_(self._iterator.aclose)


def _iterated(call: Callable[[], Any]) -> Any:
    return _Iterated(portal().plain(call))


def _iter(self: Blocking) -> Any:
    iterator = portal().plain(lambda: aiter(self._original))
    return self if iterator is self._original else _Iterated(iterator)


def _next(self: Blocking) -> Any:
    try:
        return blocking(portal().await_(self._original.__anext__))
    except StopAsyncIteration:
        raise StopIteration from None


# --- what goes in and what comes out ----------------------------------------------------------------------------------


def blocking(value: Any) -> Any:
    """The blocking form of what an async object gave: a twin, a function, or the value itself."""
    twin = twins.get(type(value))
    if twin is not None:
        living = _living.get(id(value))
        if living is None:
            living = object.__new__(twin)
            living._original = value
            _living[id(value)] = living
        return living
    if isinstance(value, types.FunctionType | types.MethodType):
        return _function(value)
    return value


def _function(function: Any) -> Any:
    """A function that came out of an async object (what a decorator gave, what takes a callback back)."""
    declared = None if hasattr(function, "__wrapped__") else function  # the parameters of a user's function are theirs

    @functools.wraps(function)
    def through(*args: Any, **kwargs: Any) -> Any:
        return _called(_bound(function, declared, args, kwargs))

    for name, value in vars(function).items():
        setattr(through, name, blocking(value))
    return through


def _bound(call: Callable[..., Any], declared: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any]:
    """`call` with its arguments translated, as `declared` says what they are."""
    if declared is not None and any(callable(value) for value in (*args, *kwargs.values())):
        names = _awaited_parameters(declared)
        positions = _positions(declared)
        args = tuple(
            _awaitable(value) if position < len(positions) and positions[position] in names else value
            for position, value in enumerate(args)
        )
        kwargs = {name: _awaitable(value) if name in names else value for name, value in kwargs.items()}
    plain = [value._original if isinstance(value, Blocking) else value for value in args]  # noqa: SLF001
    named = {
        name: value._original if isinstance(value, Blocking) else value  # noqa: SLF001
        for name, value in kwargs.items()
    }
    return functools.partial(call, *plain, **named)


@functools.cache
def _positions(declared: Any) -> tuple[str, ...]:
    return tuple(name for name in inspect.signature(declared).parameters if name != "self")


@functools.cache
def _awaited_parameters(declared: Any) -> frozenset[str]:
    """The parameters that take a function which will be awaited."""
    found = set()
    for function in (declared, *typing.get_overloads(declared)):
        try:
            hints = typing.get_type_hints(function)
        except NameError:  # the annotations of a user's function need not be known here
            continue
        found |= {name for name, hint in hints.items() if name != "return" and _awaits(hint)}
    return frozenset(found)


def _awaits(hint: Any) -> bool:
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        return any(map(_awaits, typing.get_args(hint)))
    if typing.get_origin(hint) is not Callable:
        return False
    returned = typing.get_args(hint)[-1]
    possible = (
        typing.get_args(returned) if typing.get_origin(returned) in {typing.Union, types.UnionType} else [returned]
    )
    return any(arm is Any or typing.get_origin(arm) in {Awaitable, Coroutine} for arm in possible)


def _awaitable(function: Any) -> Any:
    """A function of the user's as the async class wants it: it runs in a thread, so it may block, and call us."""
    if not callable(function) or inspect.iscoroutinefunction(function):
        return function

    @functools.wraps(function)
    async def in_thread(*args: Any, **kwargs: Any) -> Any:
        named = {name: blocking(value) for name, value in kwargs.items()}
        return await asyncio.to_thread(function, *map(blocking, args), **named)

    return in_thread
