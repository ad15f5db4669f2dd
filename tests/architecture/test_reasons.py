"""Reasons are public: each stands once in reason.proto, and code, SDK and documentation know no other."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FileDescriptor

import finetuneflow
from finetuneflow.v1 import (
    event_pb2,
    fine_tuning_service_pb2,
    model_pb2,
    probe_service_pb2,
    reason_pb2,
    validation_pb2,
    work_pb2,
)
from protos import reasons
from tests.architecture.reasons_in_code import ReasonsInCode, reasons_in

ROOT = Path(__file__).parents[2]
SOURCES = ("chassis", "engine", "gateway", "sdk", "services", "standalone")
REASONS = {value.name.removeprefix("REASON_") for value in reason_pb2.Reason.DESCRIPTOR.values if value.number}

OTHER_WORDS = re.compile(
    r"FTF_\w+|NATS_\w+|HF_\w+|RAY_\w+|GLOO_\w+|CUDA_VISIBLE_DEVICES|UPPER_SNAKE(?:_CASE)?|Q\d_\w+|NO_SIDE_EFFECTS"
)
"""Settings and formats that documentation spells like a reason."""
STATUS_CODES = {code.name for code in grpc.StatusCode} | {"NOT_SERVING"}
ATTEMPT_OUTCOMES = {"OUT_OF_MEMORY"}


_UPPER_SNAKE = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b")


@cache
def _files() -> list[Path]:
    files = [path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in files if path.parent != ROOT / "sdk" / "finetuneflow" / "v1"]


@cache
def _found() -> ReasonsInCode:
    return reasons_in(ROOT, _files())


def _unknown(used: dict[str, list[str]]) -> dict[str, list[str]]:
    return {reason: places for reason, places in used.items() if reason not in REASONS}


def test_code_gives_only_reasons_of_the_contract() -> None:
    """Otherwise a caller gets a reason that no page explains, such as one with a typo. A new one is a value in
    reason.proto."""
    assert _unknown(_found().given) == {}


def test_every_reason_of_the_contract_is_given_in_code() -> None:
    """Otherwise a caller handles what never happens."""
    assert REASONS - set(_found().given) == set()


def test_code_compares_with_reasons_of_the_contract() -> None:
    """Otherwise a case is never met, in silence."""
    assert _unknown(_found().compared) == {}


def test_docstrings_name_reasons_of_the_contract() -> None:
    assert _unknown(_found().documented) == {}
    constants, words = set[str](), {}
    for file in _files():
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            match node:
                case ast.Name(id=name) | ast.Attribute(attr=name):
                    constants.add(name.lstrip("_"))
                case ast.Expr(value=ast.Constant(value=str(text))):
                    # A docstring, also one of an attribute.
                    words |= {word: f"{file.relative_to(ROOT)}:{node.lineno}" for word in _UPPER_SNAKE.findall(text)}
    assert {word: place for word, place in words.items() if word not in constants and not _is_known(word)} == {}


def test_every_reason_in_code_can_be_read() -> None:
    """One that is put together at run time can't be searched for, nor held to the contract: write the literals."""
    assert _found().unresolved == []


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_documentation_names_reasons_of_the_contract(page: Path) -> None:
    words = set(re.findall(r"`([A-Z][A-Z0-9_]{3,})`", page.read_text("utf-8")))
    assert {word for word in words if not _is_known(word)} == set()


def test_comments_of_the_protos_name_reasons_of_the_contract() -> None:
    words = set()
    for proto in (ROOT / "protos").rglob("*.proto"):
        for line in proto.read_text("utf-8").splitlines():
            words |= set(_UPPER_SNAKE.findall(line.partition("//")[2]))
    assert {word for word in words if not _is_known(word)} == set()


def _is_known(word: str) -> bool:
    return word in REASONS | STATUS_CODES | ATTEMPT_OUTCOMES | _enum_words() or OTHER_WORDS.fullmatch(word) is not None


@cache
def _enum_words() -> set[str]:
    """Values of the other enums, with their prefix and as people write them."""
    words = {"REASON_UNSPECIFIED"}
    modules = (event_pb2, fine_tuning_service_pb2, model_pb2, probe_service_pb2, validation_pb2, work_pb2)
    for file in {file.name: file for module in modules for file in _with_imports(module.DESCRIPTOR)}.values():
        for enum in file.enum_types_by_name.values():
            prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
            words |= {prefix.rstrip("_")}
            words |= {form for value in enum.values for form in (value.name, value.name.removeprefix(prefix))}
    return words


def _with_imports(file: FileDescriptor) -> Iterator[Any]:
    yield file
    for imported in file.dependencies:
        yield from _with_imports(imported)


def test_committed_constants_and_page_are_those_of_the_proto() -> None:
    """Otherwise the SDK lacks a reason that the server gives. `make protos` writes both."""
    groups = reasons.read_groups(reasons.SOURCE.read_text("utf-8"))
    assert {name for group in groups for name in group.reasons} == REASONS
    assert reasons.CONSTANTS.read_text("utf-8") == reasons.constants(groups)
    assert reasons.PAGE.read_text("utf-8") == reasons.page(groups)


def test_each_reason_says_when_it_occurs_and_who_acts() -> None:
    groups = reasons.read_groups(reasons.SOURCE.read_text("utf-8"))
    silent = [
        name
        for group in groups
        for name, text in group.reasons.items()
        if not re.match(r".+[.;] .*(Caller: |Operator: |Service: |No action\.)", text)
    ]
    assert silent == []


def test_sdk_offers_every_reason_as_a_constant() -> None:
    assert (
        {reason.name for reason in finetuneflow.Reason} == {reason.value for reason in finetuneflow.Reason} == REASONS
    )


SOURCE = '''
"""Raises Refused("DOCUMENTED")."""
from dataclasses import dataclass
from other import CONSTANT, named

class Refused(Exception):
    def __init__(self, message, reason):
        self.reason = reason

class Inherits(Refused): ...

@dataclass
class Row:
    number: int
    reason: str = "FIELD_DEFAULT"

def passes_on(reason="DEFAULT"):
    return Refused("", reason)

def gives(failure, code):
    raise Refused("", "POSITION")
    Inherits("", "INHERITED")
    Refused("", reason="KEYWORD")
    Row(1, "FIELD" if code else "OR_FIELD")
    print({"reason": "KEY"})
    failure.reason, failure.advice = "ASSIGNED", ""
    passes_on("PARAMETER")
    Refused("", CONSTANT)
    Refused("", named(code))
    Refused("", failure.reason)
    Refused("", f"MADE_{code}")
    Refused("", code)
    if failure.reason in ("COMPARED", "COMPARED_TOO"):
        pass
'''
OTHER = """
CONSTANT = "CONSTANT_ELSEWHERE"

def named(code):
    if code:
        return "RETURNED"
    return ""
"""


def test_search_finds_every_way_to_give_a_reason(tmp_path: Path) -> None:
    """The tests above hold only what the search finds."""
    (tmp_path / "source.py").write_text(SOURCE)
    (tmp_path / "other.py").write_text(OTHER)
    found = reasons_in(tmp_path, [tmp_path / "source.py", tmp_path / "other.py"])
    given = {"POSITION", "INHERITED", "KEYWORD", "FIELD", "OR_FIELD", "ASSIGNED", "PARAMETER"}
    given |= {"FIELD_DEFAULT", "DEFAULT", "KEY"}
    assert set(found.given) == given | {"CONSTANT_ELSEWHERE", "RETURNED"}
    assert found.given["POSITION"] == ["source.py:21"]
    assert set(found.compared) == {"COMPARED", "COMPARED_TOO"}
    assert set(found.documented) == {"DOCUMENTED"}
    assert found.unresolved == ["source.py:31: f'MADE_{code}'", "source.py:32: code"]
