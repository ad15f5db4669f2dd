"""Trainings of a random Llama on random rows: seconds each, on any machine."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from engine.config.job import job_config
from engine.data.prepare import Prepared, PreparedPhase
from engine.data.statistics import Statistics
from tests.services.trainer.parts import rows
from tests.tiny_models import make_tiny_model

MakeInput = Callable[..., Any]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    Dataset.from_list(rows(40, 1)).save_to_disk(str(folder / "train"))
    Dataset.from_list(rows(10, 2)).save_to_disk(str(folder / "eval"))
    return folder


@pytest.fixture
def make_input(tiny_model: Path, data_dir: Path, tmp_path: Path) -> MakeInput:
    """Builds a TrainingInput of 20 steps; keyword arguments are hyperparameters or, by their names, other parts."""
    from services.trainer.worker.child_input import TrainingInput

    def build(
        out: str = "out",
        *,
        total_steps: int = 20,
        resume_from: Path | None = None,
        method: str = "lora",
        lora: Mapping[str, Any] | None = None,
        held_out: bool = True,
        more: Mapping[str, Any] | None = None,
        resources: Mapping[str, Any] | None = None,
        phases: Sequence[tuple[int, float]] = (),
        **hyperparameters: Any,
    ) -> Any:
        config = job_config(
            {
                "base_model": "tiny",
                "recipe": "finetuneflow",
                **(_curriculum(phases) if phases else {"training_data": [{"dataset": "ds_1"}]}),
                "method": method,
                "resources": {"gpus": 0, **(resources or {})},
                "lora": {"r": 4, "lora_dropout": 0.1, **(lora or {})},
                "hyperparameters": {
                    "precision": "fp32",
                    "optim": "adamw_torch",
                    "gradient_checkpointing": False,
                    "per_device_train_batch_size": 4,
                    "gradient_accumulation_steps": 1,
                    "learning_rate": 5e-3,
                    "max_length": 64,
                    "logging_steps": 5,
                    "eval_steps": 5,
                    **hyperparameters,
                },
            }
        )
        data = data_dir
        if not held_out:
            data = tmp_path / "train_only"
            if not data.exists():
                shutil.copytree(data_dir / "train", data / "train")
        if phases and not (tmp_path / "phased").exists():
            shutil.copytree(data_dir, tmp_path / "phased")
            counts = [PreparedPhase(Statistics(num_examples=count), 0) for count, _ in phases]
            (tmp_path / "phased" / "prepared.json").write_text(json.dumps(asdict(Prepared("", counts))))
        data = tmp_path / "phased" if phases else data
        out_dir = tmp_path / out
        out_dir.mkdir(exist_ok=True)
        return TrainingInput.model_validate_json(
            json.dumps(
                {
                    "config": config.model_dump(mode="json"),
                    "model": {"path": str(tiny_model), "id": "tiny", "revision": "r1", "weights_sha256": "0" * 64},
                    "data_dir": str(data),
                    "out_dir": str(out_dir),
                    "resume": {"path": str(resume_from), "manifest_sha256": "a" * 64} if resume_from else None,
                    "total_steps": total_steps,
                    "threads": 1,
                    **(more or {}),
                }
            )
        )

    return build


def _curriculum(phases: Sequence[tuple[int, float]]) -> dict[str, Any]:
    source = [{"dataset": "ds_1"}]
    listed = [
        {"display_name": f"part {n}", "training_data": source, "num_epochs": e} for n, (_, e) in enumerate(phases)
    ]
    return {"phases": listed}
