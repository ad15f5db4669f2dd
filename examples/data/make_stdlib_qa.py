"""Makes the example data: questions and answers from the docstrings of the Python standard library.

    python examples/data/make_stdlib_qa.py [FOLDER]

Four files of {"question", "answer"} rows, deduplicated before they are divided, so that no held-out answer is seen in
training. The same Python on the same platform gives the same bytes; README.md says which one made the committed files.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import pkgutil
import re
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Modules that open a window or a browser or print when imported, that are not libraries (tests, demonstrations,
# installers), or whose docstrings are a grammar instead of English.
LEFT_OUT = {
    "antigravity", "ast", "curses", "distutils", "ensurepip", "idlelib", "lib2to3", "msilib", "pydoc_data", "test",
    "this", "tkinter", "turtle", "turtledemo", "venv",
}  # fmt: skip
# Common names come first: an object is described once, under the first name found.
FIRST = ["builtins", "os", "os.path"]

# With SmolLM2's chat template and system prompt, rows of this length stay within 128 tokens.
MAX_CHARACTERS = 330
MIN_WORDS = 4
HELD_OUT_ROWS = 256
DEMO_TRAIN_ROWS = 384
DEMO_HELD_OUT_ROWS = 64

# `D.pop(k[,d]) -> v, remove specified key ...`: the signature before the description in docstrings of C functions.
SIGNATURE = re.compile(r"^[A-Za-z_][\w.]*\([^\n]*?\)(\s*(->|=>|--)\s*[^\n]{0,30})?$")
SIGNATURE_PREFIX = re.compile(
    r"^[A-Za-z_][\w.]*\([^)]*\)\s*(?:(?:->|=>)\s*[\w\[\]., ]{1,40}?\s*(?:--|\.\s{1,2}|,)|--|:)\s*(?=[A-Za-z])"
)
GENERATED = re.compile(r"^(Alias for field number|Create new instance of|Return a nicely formatted|None$)")


class Row(NamedTuple):
    question: str
    answer: str


def modules() -> Iterator[tuple[str, types.ModuleType]]:
    """Yields all importable public modules and submodules, in the same order on every machine."""
    names = FIRST + sorted(n for n in sys.stdlib_module_names - set(FIRST) if n[0] != "_" and n not in LEFT_OUT)
    for name in names:
        module = imported(name)
        if module is None:
            continue
        yield name, module
        if name in FIRST:
            continue
        for found in sorted(pkgutil.iter_modules(getattr(module, "__path__", []), f"{name}.")):
            if not found.name.rpartition(".")[2].startswith("_") and name != "encodings":
                submodule = imported(found.name)
                if submodule is not None:
                    yield found.name, submodule


def imported(name: str) -> types.ModuleType | None:
    """Imports a module; returns None if this platform's Python lacks its dependencies."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def docstrings() -> Iterator[tuple[str, str, object]]:
    """Yields (kind, qualified name, __doc__) of each public module, class, function and method once."""
    seen: set[int] = set()
    for module_name, module in modules():
        if id(module) not in seen and module.__doc__:
            yield "module", module_name, module.__doc__
        seen.add(id(module))
        public = getattr(module, "__all__", None)
        for name in sorted(public if public is not None else vars(module)):
            member = vars(module).get(name)
            if name.startswith("_") or id(member) in seen or not (inspect.isclass(member) or inspect.isroutine(member)):
                continue
            home = getattr(member, "__module__", None) or module_name
            if public is None and home not in (module_name, f"_{module_name}"):
                continue
            seen.add(id(member))
            qualified = name if module_name == "builtins" else f"{module_name}.{name}"
            if inspect.isroutine(member):
                yield "function", qualified, member.__doc__
                continue
            yield "class", qualified, member.__doc__
            for attribute, value in sorted(vars(member).items()):
                inner = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
                if attribute.startswith("_") or id(inner) in seen:
                    continue
                if isinstance(inner, property):
                    seen.add(id(inner))
                    yield "property", f"{qualified}.{attribute}", inner.__doc__
                elif inspect.isroutine(inner):
                    seen.add(id(inner))
                    yield "function", f"{qualified}.{attribute}", inner.__doc__


def first_paragraph(docstring: str) -> str:
    """Returns the first descriptive paragraph on one line; empty if there is none."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        lines = [line.strip() for line in paragraph.splitlines()]
        while lines and SIGNATURE.match(lines[0]) and not SIGNATURE_PREFIX.match(lines[0]):
            lines.pop(0)
        text = SIGNATURE_PREFIX.sub("", " ".join(" ".join(lines).split()))
        if text:
            return text[0].upper() + text[1:] if text[0].isalpha() and text.split()[0].islower() else text
    return ""


def answer(docstring: str) -> str:
    """Returns one or more sentences that stand alone; empty if the docstring has none."""
    text = first_paragraph(docstring)
    unfinished = text.endswith((":", ",", ";", "("))
    if not text or unfinished or not text[0].isalpha() or len(text.split()) < MIN_WORDS or GENERATED.match(text):
        return ""
    if any(mark in text for mark in (">>>", "----", "====", "****", "$Id", "->", " = ", ": - ", ":: ")):
        return ""
    return text if text.endswith((".", "!", "?", ")", '"', "'")) else f"{text}."


def rows() -> list[Row]:
    """Returns one row per docstring without duplicate questions or (ignoring case and punctuation) answers."""
    ask = {
        "module": "What is the Python module {} for?",
        "class": "What is {} in Python?",
        "function": "What does {} do?",
        "property": "What is {} in Python?",
    }
    found: list[Row] = []
    questions: set[str] = set()
    answers: set[str] = set()
    for kind, name, docstring in docstrings():
        row = Row(ask[kind].format(name), answer(docstring) if isinstance(docstring, str) else "")
        bare = re.sub(r"[^a-z0-9]", "", row.answer.lower())
        if not row.answer or len(row.question) + len(row.answer) > MAX_CHARACTERS:
            continue
        if row.question in questions or bare in answers:
            continue
        questions.add(row.question)
        answers.add(bare)
        found.append(row)
    # Ordered by a hash, so that any first n rows are a fair sample of the library.
    return sorted(found, key=lambda row: hashlib.sha256(row.answer.encode()).digest())


def write(path: Path, chosen: list[Row]) -> None:
    lines = (json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in chosen)
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path.name}: {len(chosen)} rows")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        everything = rows()
    held_out, train = everything[:HELD_OUT_ROWS], everything[HELD_OUT_ROWS:]
    write(folder / "stdlib_qa_train.jsonl", train)
    write(folder / "stdlib_qa_heldout.jsonl", held_out)
    write(folder / "demo_train.jsonl", train[:DEMO_TRAIN_ROWS])
    write(folder / "demo_heldout.jsonl", held_out[:DEMO_HELD_OUT_ROWS])


if __name__ == "__main__":
    main()
