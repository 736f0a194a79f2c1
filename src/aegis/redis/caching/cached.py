"""
The decorator: a function's result under a key made from its arguments.

The template is checked when the function is decorated, not when it is first called. With two or more fields, `:` and
`%` in what is filled in are escaped: `{a}:{b}` must not give ("x:y", "z") and ("x", "y:z") the same key.
"""

from __future__ import annotations

import functools
import inspect
import string
import typing
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from aegis.redis.caching.core import Wish
from aegis.redis.caching.stats import milliseconds

T = TypeVar("T")
P = ParamSpec("P")

_formatter = string.Formatter()


class KeyTemplate:
    """A key such as `chart:{code}:{days}`, filled in from a call's arguments."""

    def __init__(self, template: str, function: Callable[..., Any]) -> None:
        name = getattr(function, "__qualname__", repr(function))
        self._signature = inspect.signature(function)
        try:
            self._parts = [(text, field, spec or "", how) for text, field, spec, how in _formatter.parse(template)]
        except ValueError as exc:
            raise ValueError(f"key={template!r} of {name} is no template: {exc}") from None
        fields = [field for _, field, _, _ in self._parts if field is not None]
        for field in fields:
            root = field.replace("[", ".").partition(".")[0]
            if root not in self._signature.parameters:
                known = ", ".join(self._signature.parameters) or "none"
                raise ValueError(f"key={template!r} of {name} names {field!r}; its parameters are: {known}")
        if any("{" in spec for _, _, spec, _ in self._parts):
            raise ValueError(f"key={template!r} of {name} has a field within a field's format")
        if not template:
            raise ValueError(f"key={template!r} of {name} is empty")
        self._escape = len(fields) > 1

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        """The key of a call with these arguments."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        parts = []
        for text, field, spec, how in self._parts:
            parts.append(text)
            if field is not None:
                value, _ = _formatter.get_field(field, (), bound.arguments)
                filled = format(_formatter.convert_field(value, how), spec)
                parts.append(filled.replace("%", "%25").replace(":", "%3A") if self._escape else filled)
        return "".join(parts)


def result_type(function: Callable[..., Any]) -> Any:
    """The annotated type of what the function returns; Any where there is none."""
    try:
        return typing.get_type_hints(function).get("return", Any)
    except NameError:  # an annotation that cannot be resolved yet
        return Any


def decorator(
    get_or_set: Callable[..., Awaitable[Any]], delete: Callable[[str], Awaitable[bool]], key: str, wish: Wish
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """What `Cache.cached` says; a type of None in the wish means the annotated one."""
    if not callable(wish.ttl):
        milliseconds(wish.ttl, key)

    def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        key_of = KeyTemplate(key, function)
        tags_of = [KeyTemplate(tag, function) for tag in wish.tags]
        returned = result_type(function) if wish.type is None else wish.type

        @functools.wraps(function)
        async def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            result: T = await get_or_set(
                key_of(*args, **kwargs),
                functools.partial(function, *args, **kwargs),
                returned,
                ttl=wish.ttl,
                stale_s=wish.stale_s,
                error_ttl_s=wish.error_ttl_s,
                tags=[tag_of(*args, **kwargs) for tag_of in tags_of],
            )
            return result

        async def forget(*args: P.args, **kwargs: P.kwargs) -> bool:
            return await delete(key_of(*args, **kwargs))

        wrapped.__dict__.update(key_of=key_of, forget=forget)
        return wrapped

    return decorate
