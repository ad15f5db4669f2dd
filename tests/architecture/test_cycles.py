"""No module imports itself by way of others."""

from pathlib import Path

from tests.architecture.imports import cycle, import_graph, modules

ROOT = Path(__file__).parents[2]
PACKAGES = {"chassis": ".", "engine": ".", "gateway": ".", "services": ".", "standalone": ".", "finetuneflow": "sdk"}


def test_no_module_is_part_of_an_import_cycle() -> None:
    """A file in a cycle cannot be read, tested or moved without the others."""
    found = cycle(import_graph(modules(ROOT, PACKAGES)))
    assert not found, " -> ".join(found)


def test_cycles_through_functions_are_found_and_type_only_imports_ignored(tmp_path: Path) -> None:
    """An import inside a function hides a cycle from the interpreter, not from whoever changes the file."""
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "a.py").write_text("from house import b\n")
    (package / "b.py").write_text("import house.c\n")
    (package / "c.py").write_text("def late():\n    from house.a import name\n")
    files = modules(tmp_path, {"house": "."})
    assert cycle(import_graph(files)) == ["house.a", "house.b", "house.c", "house.a"]
    (package / "c.py").write_text("if TYPE_CHECKING:\n    from house.a import name\n")
    assert cycle(import_graph(files)) == []
