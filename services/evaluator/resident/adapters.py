"""A base model with several adapters, of which one or none is in effect."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, cast

from peft import PeftModel
from peft.tuners.lora import LoraModel

from engine.model.adapter import load_adapter

_MAX_ADAPTERS: Final = 16
"""Number of adapters above which those that nobody uses are dropped."""


class Adapters:
    """The adapters of one base model, by their folders."""

    def __init__(self, base: Any) -> None:
        self._base = base
        self._adapted: PeftModel | None = None
        self._names: dict[Path, str] = {}
        """The adapters in memory, the least recently used first."""
        self._active: Path | None = None

    def use(self, folder: Path | None, busy: Collection[Path | None]) -> None:
        """Puts an adapter into effect, or none; loads it if necessary. Those that are `busy` are not dropped."""
        if folder == self._active:
            return
        if folder is None:
            if self._adapted is not None:
                _tuner(self._adapted).disable_adapter_layers()
        else:
            self._activate(folder)
        self._active = folder
        for other in [other for other in self._names if other not in busy and other != folder]:
            if len(self._names) <= _MAX_ADAPTERS:
                break
            assert self._adapted is not None  # noqa: S101
            self._adapted.delete_adapter(self._names.pop(other))

    def _activate(self, folder: Path) -> None:
        # A name becomes a part of module names, which may have no dots.
        name = self._names.pop(folder, "")
        if not name:
            name = f"a{folder.name}"
            self._adapted = load_adapter(self._adapted or self._base, folder, name)
        self._names[folder] = name
        assert self._adapted is not None  # noqa: S101
        _tuner(self._adapted).enable_adapter_layers()
        self._adapted.set_adapter(name)


def _tuner(adapted: PeftModel) -> LoraModel:
    return cast(LoraModel, adapted.base_model)
