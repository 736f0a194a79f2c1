"""
The decorator: a function's result under a key made from its arguments.

The template is checked when the function is decorated, not when it is first called. With two or more fields, `:` and
`%` in text arguments are escaped: `{a}:{b}` must not give ("x:y", "z") and ("x", "y:z") the same key.
"""

from __future__ import annotations

import inspect
import string
import typing
from collections.abc import Callable
from typing import Any


class KeyTemplate:
    """A key such as `chart:{code}:{days}`, filled in from a call's arguments."""

    def __init__(self, template: str, function: Callable[..., Any]) -> None:
        name = getattr(function, "__qualname__", repr(function))
        self._template, self._signature = template, inspect.signature(function)
        try:
            parsed = list(string.Formatter().parse(template))
        except ValueError as exc:
            raise ValueError(f"key={template!r} of {name} is no template: {exc}") from None
        fields = [field for _, field, _, _ in parsed if field is not None]
        for field in fields:
            root = field.replace("[", ".").partition(".")[0]
            if root not in self._signature.parameters:
                known = ", ".join(self._signature.parameters) or "none"
                raise ValueError(f"key={template!r} of {name} names {field!r}; its parameters are: {known}")
        if not template:
            raise ValueError(f"key={template!r} of {name} is empty")
        self._escape = len(fields) > 1

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        """The key of a call with these arguments."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        if self._escape:
            arguments = {name: _escaped(value) if type(value) is str else value for name, value in arguments.items()}
        return self._template.format(**arguments)


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace(":", "%3A")


def result_type(function: Callable[..., Any]) -> Any:
    """The annotated type of what the function returns; Any where there is none."""
    try:
        return typing.get_type_hints(function).get("return", Any)
    except NameError:  # an annotation that cannot be resolved yet
        return Any
