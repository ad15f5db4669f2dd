"""The operator's tasks of lm-evaluation-harness: their names, as their files give them. Runs no code of theirs."""

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

_log = logging.getLogger(__name__)

SETTING: Final = "FTF_EVALUATOR_HARNESS_TASKS"
INSTALL: Final = "pip install 'finetuneflow-server[harness]'"


class _Loader(yaml.SafeLoader):
    """Reads the files without the code that they name."""


_Loader.add_constructor("!function", lambda loader, node: str(node.value))


class HarnessTasks:
    """The tasks that this process can run."""

    def __init__(self, folder: Path | None) -> None:
        """None: no tasks."""
        self.folder = None if folder is None else folder.resolve()
        self.names: list[str] = []
        """Sorted; empty until `read`."""

    def read(self) -> None:
        """Reads the folder. Logs files that cannot be read, and a missing folder or package, which mean no tasks."""
        if self.folder is None:
            return
        if not self.folder.is_dir():
            _log.error("%s: there is no folder %s", SETTING, self.folder)
        elif importlib.util.find_spec("lm_eval") is None:
            _log.error("%s is set, but lm-evaluation-harness is not installed: %s", SETTING, INSTALL)
        else:
            self.names = task_names(self.folder)
            _log.info("%d tasks of lm-evaluation-harness in %s", len(self.names), self.folder)


def task_names(folder: Path) -> list[str]:
    """Returns the names of the tasks, groups and tags in a folder, sorted. Logs each file that cannot be read."""
    found: set[str] = set()
    for path in sorted(folder.rglob("*.yaml")):
        try:
            found |= set(_names(_read(path.resolve(), folder.resolve(), ())))
        except (OSError, ValueError, yaml.YAMLError) as error:
            said = " ".join(str(error).split())
            _log.error("%s: %s is not used: %s", SETTING, path, said)
    return sorted(found)


def _read(path: Path, folder: Path, including: tuple[Path, ...]) -> dict[str, Any]:
    """Reads a file with those that it includes."""
    if path in including:
        raise ValueError(f"{path} includes itself")
    if not path.is_relative_to(folder):
        raise ValueError(f"it includes {path}, which is outside of the folder")
    values = yaml.load(path.read_bytes(), _Loader)  # noqa: S506 - a SafeLoader
    if not isinstance(values, dict):
        raise ValueError(f"{path} has no fields")
    included = values.pop("include", None) or []
    merged: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        merged |= _read((path.parent / name).resolve(), folder, (*including, path))
    return merged | values


def _names(values: dict[str, Any]) -> Iterator[str]:
    """Yields the names that a file defines; none for a file that others include."""
    name = values.get("group", values.get("task"))
    if isinstance(name, str):
        yield name
        tags = values.get("tag") or []
        if "group" not in values:
            yield from [tags] if isinstance(tags, str) else map(str, tags)
