"""Documentation of the public API: what `help()` and an editor show of each method, argument and field."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass

import pytest

import finetuneflow.resources
from finetuneflow import AsyncClient, Client, errors

_ADDRESS = "127.0.0.1:1"
_SECTION = re.compile(r"^(Args|Returns|Yields|Raises):$")


def _sections(docstring: str) -> dict[str, list[str]]:
    """The lines of each section of a docstring in Google's style, with their indentation; the summary under ''."""
    found: dict[str, list[str]] = {"": []}
    name = ""
    for line in inspect.cleandoc(docstring).splitlines():
        if title := _SECTION.match(line):
            name = title[1]
            found[name] = []
        else:
            found[name].append(line)
    return found


def _documented_arguments(docstring: str) -> list[str]:
    entries = (re.match(r"    \*{0,2}(\w+): \S", line) for line in _sections(docstring).get("Args", []))
    return [entry[1] for entry in entries if entry]


def _arguments(function: Callable[..., object]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def undocumented_parts(function: Callable[..., object]) -> list[str]:
    """The parts of a public method that its docstring misses or invents."""
    sections = _sections(function.__doc__ or "")
    wanted, given = _arguments(function), _documented_arguments(function.__doc__ or "")
    found = [f"argument {name}" for name in wanted if name not in given]
    found += [f"no such argument: {name}" for name in given if name not in wanted]
    if not "".join(sections[""]).strip():
        found.append("summary")
    returns = str(inspect.signature(function).return_annotation)
    if returns not in ("None", "Self") and not ("Returns" in sections or "Yields" in sections):
        found.append("Returns or Yields")
    return found


def undocumented_fields(source: str, class_name: str) -> list[str]:
    """The annotated fields of a class that no docstring follows."""
    (definition,) = (
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == class_name
    )
    found = []
    for node, following in zip(definition.body, [*definition.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            if not documented:
                found.append(node.target.id)
    return found


def _public_methods() -> Iterator[tuple[str, Callable[..., object]]]:
    client = AsyncClient(_ADDRESS, token="", ca="")
    for noun in (client, *(value for name, value in vars(client).items() if not name.startswith("_"))):
        for name, method in inspect.getmembers(type(noun), inspect.isfunction):
            if not name.startswith("_"):
                yield f"{type(noun).__name__}.{name}", method


def _public_dataclasses() -> Iterator[type]:
    for module in pkgutil.iter_modules(finetuneflow.resources.__path__, "finetuneflow.resources."):
        for _, found in inspect.getmembers(importlib.import_module(module.name), is_dataclass):
            if isinstance(found, type) and found.__module__ == module.name:
                yield found


METHODS = dict(_public_methods())
DATACLASSES = {found.__name__: found for found in _public_dataclasses()}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_documents_each_argument_and_its_result(name: str) -> None:
    assert undocumented_parts(METHODS[name]) == []


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_client_documents_the_arguments_of_its_constructor(client: type) -> None:
    assert _documented_arguments(client.__doc__ or "") == _arguments(client)


@pytest.mark.parametrize("name", DATACLASSES)
def test_a_resource_documents_each_field(name: str) -> None:
    found = DATACLASSES[name]
    source = inspect.getsource(inspect.getmodule(found) or found)
    assert undocumented_fields(source, name) == []
    assert found.__doc__ and not found.__doc__.startswith(f"{name}(")


def test_a_violation_documents_each_field() -> None:
    assert undocumented_fields(inspect.getsource(errors), "Violation") == []


def test_both_clients_show_the_same_documentation() -> None:
    nouns = {name: noun for name, noun in vars(AsyncClient(_ADDRESS, token="", ca="")).items() if name[0] != "_"}
    with Client(_ADDRESS, token="", ca="") as client:
        for name, noun in nouns.items():
            for method, documented in inspect.getmembers(type(noun), inspect.isfunction):
                if not method.startswith("_"):
                    assert getattr(getattr(client, name), method).__doc__ == documented.__doc__


def test_checks_find_missing_and_extra_documentation() -> None:
    def create(base_model: str, *, seed: int | None = None) -> int:
        """Creates a job.

        Args:
            base_model: Required.
            sed: Seed.
        """
        return seed or len(base_model)

    assert undocumented_parts(create) == ["argument seed", "no such argument: sed", "Returns or Yields"]
    assert undocumented_fields('class Job:\n    id: str\n    """Id."""\n    state: str\n', "Job") == ["state"]
