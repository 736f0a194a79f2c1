"""
`__init__.pyi` for type checkers, written from the source of the async classes: `python -m aegis.sync._stub`.

Signatures are copied as they are written; `async` and the types that only exist there are translated. A name of an
annotation is imported from where the class's own module has it.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
from collections.abc import Iterator
from types import ModuleType

from aegis.sync import _derive

_HEADER = '''"""Made by `python -m aegis.sync._stub` (`make docs`) from the async classes; see `__init__.py`."""
'''
_DUNDERS = {"__init__": "__init__", "__aenter__": "__enter__", "__aexit__": "__exit__", "__aiter__": "__iter__"}
_DUNDERS["__anext__"] = "__next__"
#: Async types of annotations and what they are when nothing is awaited.
_TRANSLATED = {
    "AsyncIterator": "Iterator",
    "AsyncIterable": "Iterable",
    "AsyncGenerator": "Iterator",
}
_ALWAYS = {"Iterator": "collections.abc", "Iterable": "collections.abc", "AbstractContextManager": "contextlib"}


class _Stub:
    """One file: its imports grow while its classes are written."""

    def __init__(self) -> None:
        self.twins = {original: twin.__name__ for original, twin in _derive.twins.items()}
        self.imports: dict[str, tuple[str, str]] = {}  # name here: (module, name there)
        for name, module in _ALWAYS.items():
            self.imports[name] = (module, name)

    def text(self) -> str:
        """The whole file, sorted as the formatter wants it."""
        classes = [self._class(original) for original in self.twins]
        imports = sorted(
            f"from {module} import {there} as {name}" if name != there else f"from {module} import {there}"
            for name, (module, there) in self.imports.items()
        )
        return "\n".join([_HEADER, *imports, "", *classes])

    def _class(self, original: type) -> str:
        bases = self._bases(original)
        lines = [f"class {original.__name__}{bases}:"]
        seen: set[str] = set()
        for ancestor in original.__mro__[:-1]:
            if not ancestor.__module__.startswith("aegis."):
                continue
            lines.extend(f"    {line}" for line in self._members(ancestor, original, seen))
        return "\n".join(lines) + "\n"

    def _bases(self, original: type) -> str:
        node, module = _source(original)
        for base in node.bases:
            if isinstance(base, ast.Subscript) and ast.unparse(base.value) == "Generic":
                return f"({self._annotation(base, module)})"
        return ""

    def _members(self, ancestor: type, original: type, seen: set[str]) -> Iterator[str]:
        node, module = _source(ancestor)
        overloads = {name for name, count in _counted(node).items() if count > 1}
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                if not item.target.id.startswith("_"):
                    yield f"{item.target.id}: {self._annotation(item.annotation, module)}"
            elif isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef):
                name = _DUNDERS.get(item.name, item.name)
                if name.startswith("_") and item.name not in _DUNDERS:
                    continue
                if (original.__name__, name) in _derive.NOT_OFFERED or name in seen:
                    continue
                marks = {ast.unparse(mark) for mark in item.decorator_list}
                if item.name in overloads and "overload" not in marks:
                    continue  # the implementation behind the overloads
                if item.name == "__init__":
                    yield from self._attributes(item, module)
                    if original in _derive.given:
                        continue
                yield from self._function(item, name, marks, module)
        seen |= {_DUNDERS.get(name, name) for name in _counted(node)}

    def _function(
        self, item: ast.FunctionDef | ast.AsyncFunctionDef, name: str, marks: set[str], module: ModuleType
    ) -> Iterator[str]:
        for mark in sorted(marks & {"overload", "property"}):
            if mark == "overload":
                self.imports["overload"] = ("typing", "overload")
            yield f"@{mark}"
        arguments = self._arguments(item.args, module)
        returned = self._annotation(item.returns, module) if item.returns else "object"
        if "asynccontextmanager" in marks:
            returned = returned.replace("Iterator[", "AbstractContextManager[", 1)
        yield f"def {name}({arguments}) -> {returned}: ..."

    def _attributes(self, item: ast.FunctionDef | ast.AsyncFunctionDef, module: ModuleType) -> Iterator[str]:
        """Public attributes that the constructor sets: of the parameter's type where it is one, else unknown."""
        hints = {arg.arg: arg.annotation for arg in (*item.args.args, *item.args.kwonlyargs) if arg.annotation}
        for assign in (node for node in ast.walk(item) if isinstance(node, ast.Assign)):
            target, value = assign.targets[0], assign.value
            pairs = (
                list(zip(target.elts, value.elts, strict=False))
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
                else [(target, value)]
            )
            for place, given in pairs:
                if not isinstance(place, ast.Attribute) or place.attr.startswith("_"):
                    continue
                hint = _hint(given, hints)
                if hint is None:
                    self.imports["Any"] = ("typing", "Any")
                yield f"{place.attr}: {self._annotation(hint, module) if hint is not None else 'Any'}"

    def _arguments(self, args: ast.arguments, module: ModuleType) -> str:
        copied = ast.parse(f"def f({ast.unparse(args)}): ...").body[0]
        assert isinstance(copied, ast.FunctionDef)
        found = copied.args
        for arg in (*found.posonlyargs, *found.args, *found.kwonlyargs, found.vararg, found.kwarg):
            if arg is not None and arg.annotation is not None:
                arg.annotation = ast.Name(self._annotation(arg.annotation, module))
        found.defaults = [ast.Constant(...) for _ in found.defaults]
        found.kw_defaults = [default and ast.Constant(...) for default in found.kw_defaults]
        return ast.unparse(found)

    def _annotation(self, annotation: ast.expr, module: ModuleType) -> str:
        """The annotation with its names imported, and what is only async translated."""
        return ast.unparse(_Translate(self, module).visit(ast.parse(ast.unparse(annotation), mode="eval").body))

    def name(self, name: str, module: ModuleType) -> ast.expr:
        """A name of an annotation in `module` as it is called here."""
        if hasattr(builtins, name):
            return ast.Name(name)
        value = getattr(module, name, None)
        if isinstance(value, type) and value in self.twins:
            return ast.Name(self.twins[value])
        alias = _alias(name, module)
        if alias is not None and any(word in ast.unparse(alias[0]) for word in ("Awaitable", "Coroutine", "Async")):
            return _Translate(self, alias[1]).visit(alias[0])  # type: ignore[no-any-return]
        home = _public(value, name) or _home(name, module)
        here = name
        while self.imports.get(here, home) != home and not _alike(value, self.imports[here]):
            here = f"_{here}"
        self.imports.setdefault(here, home)
        return ast.Name(here)


class _Translate(ast.NodeTransformer):
    def __init__(self, stub: _Stub, module: ModuleType) -> None:
        self._stub, self._module = stub, module

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self._stub.name(node.id, self._module)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        inner = getattr(self._module, ast.unparse(node.value))
        return self._stub.name(node.attr, inner)

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        name = ast.unparse(node.value)
        if name in {"Awaitable", "Coroutine"}:  # what comes out when it has ended: the last of its arguments
            last = node.slice.elts[-1] if isinstance(node.slice, ast.Tuple) else node.slice
            return self.visit(last)  # type: ignore[no-any-return]
        if name == "Limiter":  # the protocol of what is awaited; ours is the one that there is
            return ast.Name("RateLimiter")
        if name == "Literal":
            return ast.Subscript(self._stub.name(name, self._module), node.slice)
        if name in _TRANSLATED:
            first = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
            return ast.Subscript(ast.Name(_TRANSLATED[name]), self.visit(first))
        node.value, node.slice = self.visit(node.value), self.visit(node.slice)
        return node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        left, right = self.visit(node.left), self.visit(node.right)
        return left if ast.unparse(left) == ast.unparse(right) else ast.BinOp(left, node.op, right)

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        if isinstance(node.value, str):  # an annotation in quotes
            return self.visit(ast.parse(node.value, mode="eval").body)  # type: ignore[no-any-return]
        return node


def _hint(given: ast.expr, hints: dict[str, ast.expr]) -> ast.expr | None:
    """The annotation of the parameter that is stored; `x or default` and `x if ... else default` are not None."""
    if isinstance(given, ast.Name):
        return hints.get(given.id)
    inner = {ast.BoolOp: "values", ast.IfExp: "body"}.get(type(given))
    if inner is None:
        return None
    part = getattr(given, inner)
    hint = _hint(part[0] if isinstance(part, list) else part, hints)
    return hint and ast.parse(ast.unparse(hint).removesuffix(" | None"), mode="eval").body


def _source(kind: type) -> tuple[ast.ClassDef, ModuleType]:
    module = sys.modules[kind.__module__]
    tree = ast.parse(inspect.getsource(module))
    return next(n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == kind.__name__), module


def _counted(node: ast.ClassDef) -> dict[str, int]:
    names = [item.name for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {name: names.count(name) for name in names}


def _statement(name: str, module: ModuleType) -> ast.stmt | None:
    """The statement of the module that gives it this name."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            return node
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return node
    return None


def _home(name: str, module: ModuleType) -> tuple[str, str]:
    node = _statement(name, module)
    if isinstance(node, ast.ImportFrom) and node.module:
        there = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
        return node.module, there
    return module.__name__, name


def _public(value: object, name: str) -> tuple[str, str] | None:
    """The room that exports it: a move within the room does not change the stub."""
    room = ".".join(str(getattr(value, "__module__", "")).split(".")[:2])
    module = sys.modules.get(room)
    exported = room.startswith("aegis.") and getattr(module, name, None) is value
    return (room, name) if exported and name in getattr(module, "__all__", ()) else None


def _alias(name: str, module: ModuleType) -> tuple[ast.expr, ModuleType] | None:
    """What a `TypeAlias` stands for, and the module in which its names are to be read."""
    node = _statement(name, module)
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("aegis."):
        there = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
        return _alias(there, sys.modules[node.module])
    if isinstance(node, ast.AnnAssign) and node.value is not None and ast.unparse(node.annotation) == "TypeAlias":
        return ast.parse(ast.unparse(node.value), mode="eval").body, module
    return None


def _alike(value: object, home: tuple[str, str]) -> bool:
    """Whether the name imported already is the same object, or a type variable of the same name."""
    other = getattr(sys.modules.get(home[0]), home[1], None)
    return other is value or (type(other) is type(value) and type(value).__name__ in {"TypeVar", "ParamSpec"})


def stub_text() -> str:
    """The text of `__init__.pyi`."""
    return _Stub().text()


if __name__ == "__main__":
    sys.stdout.write(stub_text())
