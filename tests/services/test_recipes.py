"""Each recipe of a seed system, from rows to a trained model, with that system's own values."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from chassis.child.pipe import EventSink
from engine.catalogue import Catalogue
from engine.config.job import JobConfig, job_config
from engine.config.spec_proto import resolved_config, spec_to_dict
from engine.inl_sizes import InlSize
from engine.model.random_weights import write_random_weights
from engine.tokenizer_files import copy_tokenizer, num_tokens
from finetuneflow.spec import draft_spec
from finetuneflow.v1.event_pb2 import ConfigResolved
from services.probe.worker.preflight import preflight
from services.trainer.worker.child_input import TrainingInput
from services.trainer.worker.recipe import train
from tests.tiny_models import make_tiny_model

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QUESTIONS = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(20)]
TEXTS = [{"text": f"The number {n} comes before {n + 1}."} for n in range(20)]
# The flat, older names that each system's own configuration uses, and the rows that it is for.
SEEDS: Mapping[str, tuple[Mapping[str, Any], list[dict[str, str]]]] = {
    "finetuneflow": (
        {
            "num_epochs": 3, "learning_rate": 2e-4, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4,
            "gradient_accumulation_steps": 4, "max_seq_length": 2048, "warmup_ratio": 0.03, "weight_decay": 0.01,
            "lr_scheduler_type": "cosine", "logging_steps": 10, "eval_steps": 100, "save_steps": 200,
            "save_total_limit": 3, "load_best_model_at_end": True, "early_stopping_patience": 3, "r": 16,
            "gradient_checkpointing": True, "packing": False, "group_by_length": False,
            "lora_alpha": 32, "lora_dropout": 0.05, "bias": "none", "target_modules": "auto",
            "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
        },
        QUESTIONS,
    ),
    "chat-response-only": (
        {
            "load_in_4bit": True, "load_in_8bit": False, "use_gradient_checkpointing": "unsloth",
            "device_train_batch_size": 2, "grad_accumulation": 8, "hyperparameters": {"loss_on": "response"},
        },
        QUESTIONS,
    ),
    "fitbox": (
        {
            "epochs": 4, "batch_size": 4, "learning_rate": 5e-4, "warmup_steps": 200, "optimizer": "paged_adamw_8bit",
            "scheduler": "cosine", "gradient_checkpointing": True, "seed": 42, "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
            "lora": {"r": 32, "alpha": 64, "target_modules": SEVEN},
        },
        QUESTIONS,
    ),
    "experimentation-qa": (
        {
            "num_train_epochs": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4,
            "learning_rate": 2e-4, "warmup_ratio": 0.03, "lr_scheduler_type": "cosine", "max_seq_length": 2048,
            "optim": "paged_adamw_8bit", "gradient_checkpointing": True, "save_steps": 500, "save_total_limit": 3,
            "lora": {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": SEVEN},
            "quantization": {
                "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
            },
        },
        QUESTIONS,
    ),
    "text-pretrain": (
        {
            "num_epochs": 10, "batch_size": 4, "learning_rate": 3e-5, "gradient_accumulation_steps": 8,
            "warmup_steps": 1000, "scheduler": "cosine", "early_stopping_patience": 5, "method": "full",
            "gradient_checkpointing": True, "hyperparameters": {"loss_on": "all"},
        },
        TEXTS,
    ),
    "inl-3b": (
        {
            "num_epochs": 10, "batch_size": 4, "learning_rate": 3e-5, "gradient_accumulation_steps": 8,
            "warmup_steps": 1000, "scheduler": "cosine", "early_stopping_patience": 5, "method": "full",
            "gradient_checkpointing": True, "hyperparameters": {"loss_on": "all"},
        },
        TEXTS,
    ),
    "inl-4b": (
        {
            "num_epochs": 10, "batch_size": 2, "learning_rate": 2e-5, "gradient_accumulation_steps": 8,
            "warmup_steps": 1000, "scheduler": "cosine", "early_stopping_patience": 5, "method": "full",
            "gradient_checkpointing": True, "hyperparameters": {"loss_on": "all"},
        },
        TEXTS,
    ),
}  # fmt: skip


class Recorder(EventSink):
    """Records what is emitted."""

    def __init__(self) -> None:
        super().__init__(None, None)
        self.events: list[Any] = []

    def emit(self, payload: Message, severity: Any = None) -> None:
        self.events.append(payload)

    def of(self, kind: type[Message]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(scope="module")
def tiny_inl(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inl") / "tiny"
    folder.mkdir()
    special = copy_tokenizer(tiny_model, folder)
    config = InlSize(hidden=32, layers=2, iterations=3, context=128).config(num_tokens(folder))
    (folder / "config.json").write_text(json.dumps(config | special))
    write_random_weights(folder, 0)
    return folder


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def without_recipe(config: JobConfig) -> dict[str, Any]:
    return config.model_dump(exclude={"recipe"})


@pytest.mark.parametrize("name", SEEDS)
def test_recipe_has_the_values_of_its_system(name: str) -> None:
    """Whoever moves from that system would otherwise train with other values under its name."""
    job = {"base_model": "m", "training_data": "ds_1"}
    own = spec_to_dict(draft_spec({**job, **SEEDS[name][0]}).spec)
    chosen = job_config({"base_model": "m", "training_data": [{"dataset": "ds_1"}], "recipe": name})
    # Setting what the recipe sets changes nothing.
    assert job_config({**own, "recipe": name}).model_dump() == chosen.model_dump()
    # The recipe sets nothing else: the system's values over the defaults are the recipe.
    assert without_recipe(job_config(own)) == without_recipe(chosen)


@pytest.mark.parametrize("name", SEEDS)
def test_recipe_trains(name: str, tiny_model: Path, tiny_inl: Path, tmp_path: Path) -> None:
    """A recipe that no machine of ours has run may fail at its first step."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in SEEDS[name][1]))
    model = Catalogue(tmp_path / "home", {"tiny": tiny_inl if name.startswith("inl-") else tiny_model}).fetch("tiny")
    files = {**vars(model), "path": str(model.path)}
    given = {"base_model": "tiny", "training_data": [{"dataset": "ds_1"}], "recipe": name}
    out = tmp_path / "out"
    checked = {
        "config": job_config(given).model_dump(mode="json"),
        "given": given,
        "model": files,
        "sources": {"ds_1": str(rows)},
        "out_dir": str(out),
        "node_id": "node-1",
    }
    (tmp_path / "input.json").write_text(json.dumps(checked))
    found = Recorder()
    result = preflight(found, tmp_path / "input.json").preflight
    (published,) = found.of(ConfigResolved)
    config = resolved_config(published.resolved_spec)
    (tmp_path / "trained").mkdir()
    child_input = TrainingInput.model_validate_json(
        json.dumps(
            {
                "config": config.model_dump(mode="json"),
                "model": files,
                "data_dir": str(out / result.shards_path),
                "out_dir": str(tmp_path / "trained"),
                "total_steps": result.total_steps,
                "threads": 1,
            }
        )
    )
    sink = Recorder()
    trained = train(child_input, sink)
    assert trained.total_steps == result.total_steps > 0
    assert trained.HasField("final_eval_loss")
    checkpoint = tmp_path / "trained" / "checkpoints" / f"step-{result.total_steps}"
    weights = "model.safetensors" if config.method == "full" else "adapter_model.safetensors"
    assert (checkpoint / weights).exists()
