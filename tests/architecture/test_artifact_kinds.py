"""The kinds of artifacts that the contract and the SDK list are those that services and deliveries save."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LISTS = (
    ("protos/finetuneflow/v1/artifact.proto", r"One of (.+)\.\n  string kind"),
    ("protos/finetuneflow/v1/event.proto", r"One of (.+)\.\n  string kind = 2;\n  // SHA-256"),
    ("sdk/finetuneflow/artifacts.py", r"of this kind: ([^.]+)\."),
    ("sdk/finetuneflow/resources/artifact.py", r'kind: str\n    """One of (.+)\.'),
    ("sdk/finetuneflow/resources/event.py", r'kind: str\n    """One of (.+)\.'),
)


def _saved() -> set[str]:
    """The literal kinds of every ArtifactSaved in the services, also those passed through a parameter `kind`."""
    found: set[str] = set()
    for file in sorted((ROOT / "services").rglob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                for value in _kinds(function):
                    if isinstance(value, ast.Name):
                        position = [argument.arg for argument in function.args.args].index(value.id)
                        passed = [call.args[position] for call in _calls(tree, function.name)]
                        found |= {ast.literal_eval(argument) for argument in passed}
                    else:
                        found.add(ast.literal_eval(value))
    return found


def _kinds(function: ast.FunctionDef) -> Iterator[ast.expr]:
    for call in _calls(function, "ArtifactSaved"):
        yield from (keyword.value for keyword in call.keywords if keyword.arg == "kind")


def _calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=called)) if called == name:
                yield node


@pytest.mark.parametrize(("path", "pattern"), LISTS, ids=[path for path, _ in LISTS])
def test_the_listed_kinds_are_the_saved_ones(path: str, pattern: str) -> None:
    """Otherwise a caller filters by a kind that no artifact has, or misses one."""
    listed = re.search(pattern, (ROOT / path).read_text("utf-8"))
    assert listed
    # Deliveries store artifacts without an event: the job has ended.
    delivered = {"tensorboard", "wandb"} if "artifact" in Path(path).name else set()
    assert set(re.findall(r"`(\w+)`", listed[1])) == _saved() | delivered
