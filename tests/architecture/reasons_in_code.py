"""Finds every reason in the source: what is passed to a parameter, assigned to an attribute or given for a key named
`reason`, and what `.reason` is compared with.

A reason is a literal; a name, attribute or function whose values are literals; or it is passed on from another
exception, message or parameter of that name. Anything else is listed as unresolved: no reader could say either which
reasons it may be.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
Literals = list[tuple[str, str]]
"""Reasons, each with its place as `path:line`."""

SENTENCES = frozenset({"Resolution", "Improvement", "_better", "choose", "Recommendation", "SeedRecommendation"})
"""Callables whose `reason` argument is a sentence for users, as in the proto fields that it fills."""
_DOCUMENTED = re.compile(r'\w\("([A-Z][A-Z0-9_]+)"\)')


@dataclass
class ReasonsInCode:
    """The places of each reason, as `path:line`."""

    given: dict[str, list[str]] = field(default_factory=dict)
    """Reasons that something is raised, reported or recorded with."""
    compared: dict[str, list[str]] = field(default_factory=dict)
    """Reasons that another one is compared with."""
    documented: dict[str, list[str]] = field(default_factory=dict)
    """Reasons that a docstring names, as in `Raises JobError("BAD_DATA")`."""
    unresolved: list[str] = field(default_factory=list)
    """Expressions whose literals were not found, with their places."""


def reasons_in(root: Path, files: list[Path]) -> ReasonsInCode:
    """`files` lie below `root`, or below a folder `sdk` of it, from which they are imported."""
    modules: dict[str, _Module] = {}
    for file in files:
        path = file.relative_to(root).as_posix()
        name = path.removeprefix("sdk/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        modules[name] = _Module(path, ast.parse(file.read_text("utf-8")), modules)
    found = ReasonsInCode()
    for module in modules.values():
        module.collect(found)
    return found


class _Module:
    """One file, with what its names stand for."""

    def __init__(self, path: str, tree: ast.Module, modules: dict[str, _Module]) -> None:
        self._path, self._tree, self._modules = path, tree, modules
        self._imported: dict[str, tuple[str, str]] = {}
        """Module, and name in it, of each name that is imported from another file."""
        self._defined: dict[str, list[Function | ast.ClassDef]] = {}
        self._methods: dict[str, list[Function]] = {}
        self._assigned: dict[str, list[ast.expr]] = {}
        """Values of each variable, and of each attribute as `.name`."""
        self._functions = [node for node in ast.walk(tree) if isinstance(node, Function)]
        for node in ast.walk(tree):
            self._index(node)

    def _index(self, node: ast.AST) -> None:
        match node:
            case ast.ImportFrom(module=str(module), names=names):
                for each in names:
                    self._imported[each.asname or each.name] = (module, each.name)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self._defined.setdefault(node.name, []).append(node)
                for member in node.body if isinstance(node, ast.ClassDef) else ():
                    if isinstance(member, Function):
                        self._methods.setdefault(member.name, []).append(member)
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    for name, part in _pairs(target, value):
                        self._assigned.setdefault(name, []).append(part)
            case ast.AnnAssign(target=target, value=ast.expr() as value) | ast.NamedExpr(target=target, value=value):
                for name, part in _pairs(target, value):
                    self._assigned.setdefault(name, []).append(part)

    def collect(self, found: ReasonsInCode) -> None:
        for node in ast.walk(self._tree):
            self._look_at(node, found)

    def _look_at(self, node: ast.AST, found: ReasonsInCode) -> None:
        if isinstance(node, ast.Module | ast.ClassDef | Function):
            for reason in _DOCUMENTED.findall(ast.get_docstring(node) or ""):
                found.documented.setdefault(reason, []).append(self._place(node.body[0]))
        for expression in self._given(node):
            literals = self._literals(expression)
            if literals is None:
                found.unresolved.append(f"{self._place(expression)}: {ast.unparse(expression)}")
            for reason, place in literals or ():
                found.given.setdefault(reason, []).append(place)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(isinstance(side, ast.Attribute) and side.attr == "reason" for side in sides):
                for side in sides:
                    for reason, place in self._literals(side) or ():
                        found.compared.setdefault(reason, []).append(place)

    def _given(self, node: ast.AST) -> Iterator[ast.expr]:
        """The expressions that become a reason at this node."""
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name not in SENTENCES:
                named = [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
                position = None if named else self._position(node.func)
                if position is not None and position < len(node.args):
                    # Behind a `*` the position is another one; what it unpacks was given elsewhere.
                    starred = any(isinstance(each, ast.Starred) for each in node.args[: position + 1])
                    named = [] if starred else [node.args[position]]
                yield from named
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    yield from (part for name, part in _pairs(target, value) if name == ".reason")
            case ast.ClassDef(body=body):
                for member in body:
                    match member:
                        case ast.AnnAssign(target=ast.Name(id="reason"), value=ast.expr() as value):
                            yield value
            case ast.arguments():
                yield from (default for name, default in _defaults(node) if name == "reason")
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == "reason":
                        yield value

    def _position(self, callee: ast.expr) -> int | None:
        """Which positional argument of a call is its reason."""
        match callee:
            case ast.Name(id=name):
                found = self._find(name)
                return None if found is None else found[0]._position_in(found[1])
            case ast.Attribute(value=ast.Name(id=name), attr=method) if name in self._imported:
                module = self._modules.get(".".join(self._imported[name]))
                found = module._find(method) if module else None
                return None if found is None or module is None else module._position_in(found[1])
            case ast.Attribute(attr=method):
                if method == "__init__":
                    return None
                # A method, by its name alone: of this file, or of the only ones that take a reason.
                own = [_argument(each) for each in self._methods.get(method, ())]
                if own or method.startswith("_"):
                    return next((position for position in own if position is not None), None)
                return _method_anywhere(method, self._modules)
        return None

    def _position_in(self, definition: Function | ast.ClassDef) -> int | None:
        if isinstance(definition, Function):
            return _argument(definition)
        for member in definition.body:
            if isinstance(member, ast.FunctionDef) and member.name == "__init__":
                return _argument(member)
        if any("dataclass" in ast.unparse(each) for each in definition.decorator_list):
            if "kw_only=True" in ast.unparse(definition.decorator_list[0]):
                return None
            members = [each.target for each in definition.body if isinstance(each, ast.AnnAssign)]
            names = [each.id for each in members if isinstance(each, ast.Name)]
            return names.index("reason") if "reason" in names else None
        for base in definition.bases:
            found = self._find(base.id) if isinstance(base, ast.Name) else None
            if found:
                return found[0]._position_in(found[1])
        return None

    def _find(self, name: str) -> tuple[_Module, Function | ast.ClassDef] | None:
        """The function or class that a name stands for, and the file it is in."""
        if name in self._defined:
            return self, self._defined[name][-1]
        module, original = self._imported.get(name, ("", ""))
        return self._modules[module]._find(original) if module in self._modules else None

    def _literals(self, node: ast.expr) -> Literals | None:
        """The literals an expression may be; [] where it passes on what another reason was; None if that is unknown."""
        match node:
            case ast.Constant(value=str(text)):
                return [(text, self._place(node))] if text else []
            case ast.Attribute(attr="reason") | ast.Subscript(slice=ast.Constant(value="reason")):
                return []
            case ast.IfExp(body=body, orelse=orelse):
                return _joined(self._literals(each) for each in (body, orelse))
            case ast.Tuple(elts=parts) | ast.Set(elts=parts) | ast.List(elts=parts) | ast.BoolOp(values=parts):
                return _joined(self._literals(each) for each in parts)
            case ast.Dict(values=values):
                return _joined(self._literals(each) for each in values)
            case ast.Subscript(value=ast.Name() as table):
                return self._literals(table)
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value="reason"), *_]):
                return []
            case ast.Call(func=ast.Name(id="frozenset" | "str" | "_cut"), args=[first, *_]):
                return self._literals(first)
            case ast.Call(func=function):
                return self._returned(function)
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                return _joined(self._literals(value) for value in self._assigned.get(f".{name}", ()))
            case ast.Name(id=name):
                return self._named(name, node.lineno)
        return None

    def _named(self, name: str, line: int) -> Literals | None:
        """Resolves a name at a line: a parameter, a variable of the function, or a constant of this or another file."""
        functions = [each for each in self._functions if each.lineno <= line <= (each.end_lineno or each.lineno)]
        for function in sorted(functions, key=lambda each: each.lineno, reverse=True):
            if name in _arguments(function):
                return [] if name == "reason" else None
            lines = range(function.lineno, (function.end_lineno or function.lineno) + 1)
            values = [value for value in self._assigned.get(name, ()) if value.lineno in lines]
            if values:
                return _joined(self._literals(value) for value in values)
        if name in self._assigned:
            return _joined(self._literals(value) for value in self._assigned[name])
        module, original = self._imported.get(name, ("", ""))
        if module in self._modules:
            return self._modules[module]._named(original, 0)
        # The variable of a loop or a comprehension over other reasons.
        return [] if name == "reason" else None

    def _returned(self, function: ast.expr) -> Literals | None:
        module: _Module | None = self
        match function:
            case ast.Name(id=name):
                pass
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in self._imported:
                module = self._modules.get(".".join(self._imported[owner]))
            case _:
                return None
        found = module._find(name) if module else None
        if found is None or not isinstance(found[1], Function):
            return None
        home, definition = found
        returned = [node.value for node in ast.walk(definition) if isinstance(node, ast.Return) and node.value]
        return _joined(home._literals(value) for value in returned)

    def _place(self, node: ast.AST) -> str:
        return f"{self._path}:{getattr(node, 'lineno', 1)}"


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Names that an assignment gives a value, attributes as `.name`."""
    match target, value:
        case ast.Tuple(elts=targets), ast.Tuple(elts=values):
            for each, part in zip(targets, values, strict=False):
                yield from _pairs(each, part)
        case ast.Name(id=name), _:
            yield name, value
        case ast.Attribute(attr=name), _:
            yield f".{name}", value


def _defaults(arguments: ast.arguments) -> Iterator[tuple[str, ast.expr]]:
    positional = [*arguments.posonlyargs, *arguments.args]
    first = len(positional) - len(arguments.defaults)
    yield from ((each.arg, default) for each, default in zip(positional[first:], arguments.defaults, strict=True))
    for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if default is not None:
            yield each.arg, default


def _arguments(function: Function) -> list[str]:
    return [each.arg for each in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]


def _argument(function: Function) -> int | None:
    names = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
    if names[:1] in (["self"], ["cls"]):
        del names[0]
    return names.index("reason") if "reason" in names else None


def _method_anywhere(name: str, modules: dict[str, _Module]) -> int | None:
    places = {
        position
        for module in modules.values()
        for each in module._methods.get(name, ())
        if (position := _argument(each)) is not None
    }
    assert len(places) < 2, f"methods named {name} take their reason at different places: {places}"
    return next(iter(places), None)


def _joined(parts: Iterator[Literals | None]) -> Literals | None:
    joined: Literals = []
    for part in parts:
        if part is None:
            return None
        joined += part
    return joined
