"""The import graph of our own modules, from their source."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path


def modules(root: Path, folders: Mapping[str, str]) -> dict[str, Path]:
    """Maps module names to files. `folders`: package → folder of its parent, relative to `root`."""
    found = {}
    for package, parent in folders.items():
        for path in (root / parent / package).rglob("*.py"):
            parts = path.relative_to(root / parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def import_graph(files: Mapping[str, Path]) -> dict[str, set[str]]:
    """For each module, the modules of `files` that it imports: at the top or in functions, not under TYPE_CHECKING."""
    return {name: set(_imported(ast.parse(path.read_text()), files)) - {name} for name, path in files.items()}


def _imported(node: ast.AST, known: Mapping[str, Path]) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from _imported(other, known)
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names if alias.name in known)
        elif isinstance(child, ast.ImportFrom) and child.module:
            for alias in child.names:
                member = f"{child.module}.{alias.name}"
                yield from (name for name in (member if member in known else child.module,) if name in known)
        yield from _imported(child, known)


def cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """Returns one cycle as the modules along it, the first one again at the end; empty if there is none."""
    done: set[str] = set()
    for start in sorted(graph):
        path: list[str] = []
        pending = [iter([start])]
        while pending:
            following = next(pending[-1], None)
            if following is None:
                pending.pop()
                if path:
                    done.add(path.pop())
            elif following in path:
                return [*path[path.index(following) :], following]
            elif following not in done:
                path.append(following)
                pending.append(iter(sorted(graph[following])))
    return []
