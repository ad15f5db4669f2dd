"""The start of a training: what a job takes over from the job whose adapter it starts from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, Final

from engine.config.conflicts import beyond_plain_lora
from engine.config.job import JobConfig, Lora
from engine.config.recipes import merge, recipe
from engine.errors import JobError, Violation

_MAX_RANK, _MAX_ALPHA = 1024, 4096
_LAYERS: Final = ("target_modules", "target_modules_pattern", "layers_to_transform")
_SHAPE: Final = (
    *_LAYERS, "r", "lora_alpha", "bias", "use_rslora", "use_dora", "init_lora_weights", "modules_to_save",
    "trainable_tokens",
)  # fmt: skip
"""The settings that an adapter cannot change once it has weights: all but the dropout."""
_BEYOND: Final = ("bias", "use_dora", "modules_to_save", "trainable_tokens")
"""Settings that start_mode "new" refuses."""


def saved_rank(config: JobConfig, start_rank: int) -> int:
    """Returns the rank of the adapter that a job saves; `start_rank` is that of the adapter that it starts from."""
    own = 2 * config.lora.r if config.lora.changes_base else config.lora.r
    return own + start_rank if config.start_mode == "new" else own


def saved_alpha(lora: Lora, rank: int) -> float:
    """Returns the lora_alpha with which an adapter of that rank has the scale of `lora`."""
    return lora.lora_alpha * (sqrt(rank / lora.r) if lora.use_rslora else rank / lora.r)


def trained_datasets(config: JobConfig) -> list[str]:
    """Returns the datasets that a job is trained on, each once."""
    phases = [source for phase in config.phases for source in phase.training_data]
    return list(dict.fromkeys(source.dataset for source in (*config.training_data, *phases)))


def split_key(config: JobConfig) -> str:
    """Returns a digest of everything that decides which rows are held out of which data."""
    names = {"training_data", "phases", "evaluation_data", "holdout_fraction", "seed"}
    parts = config.model_dump(mode="json", include=names)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class TrainedData:
    """The data that a job was trained on."""

    datasets: list[str]
    split_key: str
    """See `split_key`."""


@dataclass(frozen=True)
class StartSource:
    """The job whose adapter another job starts from."""

    name: str
    """Name of the adapter: `ft:<job_id>@<step>`."""
    config: JobConfig
    """The resolved configuration that it was trained with."""
    rank: int
    """Rank of the adapter as it was saved."""

    def open_settings(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the source's values for the settings that `spec`, the spec of the new job, leaves open.

        Raises JobError("INVALID_CONFIG") if the adapter cannot be used as start_mode says.
        """
        values, given = merge(_recipe_values(spec), spec), spec.get("lora") or {}
        new = values.get("start_mode") == "new"
        self._check_adapter(new=new)
        shape = self._shape()
        if not shape["target_modules"] and shape["target_modules_pattern"] is None:
            # An empty list would leave the choice to the recipe.
            shape["target_modules"] = ["all-linear"]
        # The two exclude each other: if the caller has set one, `check` compares it.
        excluded = (
            {"target_modules_pattern"} if given.get("target_modules") or given.get("layers_to_transform") else set()
        )
        excluded |= {"target_modules", "layers_to_transform"} if given.get("target_modules_pattern") else set()
        taken = {name: shape[name] for name in _kept(new=new) if name not in excluded and given.get(name) is None}
        changes: dict[str, Any] = {"lora": {name: value for name, value in taken.items() if value not in (None, [])}}
        if values.get("method") in (None, "auto"):
            changes["method"] = self.config.method
        quantization = spec.get("quantization") or {}
        if self.config.method == "qlora":
            mine = self.config.quantization.model_dump()
            changes["quantization"] = {name: value for name, value in mine.items() if quantization.get(name) is None}
        return changes

    def check(self, config: JobConfig) -> None:
        """Raises JobError("INVALID_CONFIG") if the settings of the adapter are not the source's."""
        new, shape = config.start_mode == "new", self._shape()
        differing = {
            name: value
            for name in _kept(new=new)
            if (value := getattr(config.lora, name)) != shape[name]
            and not (isinstance(value, list) and sorted(value) == sorted(shape[name]))
        }
        # One that is empty differs because of another one that excludes it.
        given = {name: value for name, value in differing.items() if value not in (None, [])} or differing
        found = [
            Violation(
                f"spec.lora.{name}",
                f"{_shown(name, value)} given, but the adapter {self.name} has {_shown(name, shape[name])}. Remove it"
                f"{self._other_way(name, new=new)}.",
            )
            for name, value in given.items()
        ]
        if found:
            message = f"{found[0].field}: {found[0].description}"
            raise JobError("INVALID_CONFIG", message, "Correct the named fields and try again.", found)

    def _other_way(self, name: str, *, new: bool) -> str:
        """Returns the advice to use start_mode "new", if that would accept the setting `name`."""
        joined = name not in (*_LAYERS, *_BEYOND) and not beyond_plain_lora(self.config.lora.model_dump())
        if new or not joined or not self.name.startswith("ft:"):
            return ""
        return ", or set start_mode to new to train another adapter on top of it"

    def _shape(self) -> dict[str, Any]:
        """Returns the settings of the adapter as it was saved."""
        lora = self.config.lora
        # LoftQ's adapter belongs to quantized weights wherever it is trained; other initial values are history.
        initial = "loftq" if lora.init_lora_weights == "loftq" else "default"
        saved = {"r": self.rank, "lora_alpha": saved_alpha(lora, self.rank), "init_lora_weights": initial}
        return {name: getattr(lora, name) for name in _SHAPE} | saved

    def _check_adapter(self, *, new: bool) -> None:
        lora = self.config.lora
        if new:
            if beyond := beyond_plain_lora(lora.model_dump()):
                raise self._refused(
                    f"The adapter {self.name} was trained with {beyond[0]}, which cannot be combined with a second "
                    "adapter.",
                    "Set start_mode to continue.",
                )
            return
        alpha = saved_alpha(lora, self.rank)
        if self.rank > _MAX_RANK or alpha > _MAX_ALPHA:
            raise self._refused(
                f"The adapter {self.name} has rank {self.rank:,} and lora_alpha {alpha:g}; at most {_MAX_RANK:,} and "
                f"{_MAX_ALPHA:,} can be trained.",
                "Set start_mode to new.",
            )

    def _refused(self, message: str, advice: str) -> JobError:
        return JobError("INVALID_CONFIG", f"{message} {advice}", advice, [Violation("spec.start_mode", message)])


def _kept(*, new: bool) -> tuple[str, ...]:
    """Returns the settings of an adapter that a job which starts from it has to keep."""
    return _LAYERS if new else _SHAPE


def _recipe_values(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return recipe(spec.get("recipe") or "default").values
    except JobError:
        # `job_config` reports it, with everything else that is wrong.
        return {}


def _shown(name: str, value: object) -> str:
    if name == "target_modules" and value in ([], ["all-linear"]):
        return "every linear layer"
    if value in (None, []):
        return "none"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)
