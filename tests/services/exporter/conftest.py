"""A tuned tiny model and the complete input of its export."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.config.job import JobConfig, job_config
from finetuneflow.v1.hardware_pb2 import Hardware
from finetuneflow.v1.stage_result_pb2 import (
    BaseModelIdentity,
    ConditionResult,
    DataStatistics,
    EvaluationResult,
    GateResult,
    InferenceSample,
    MetricComparison,
    PreflightResult,
    TrainingResult,
)
from finetuneflow.v1.work_pb2 import MetricPoint, MetricSeries
from services.child_input import ModelFiles
from services.exporter.worker.child_input import DatasetFile, ExportInput, JobOrigin
from tests.tiny_models import make_tiny_model

TRAIN = [(1, 4.0), (2, 3.6), (3, float("nan")), (4, 3.1), (5, 2.9), (6, 2.8)]
EVAL = [(2, 3.7), (4, 3.2), (6, 3.3)]


def random_adapter(base: Path, directory: Path, **settings: Any) -> Path:
    """A checkpoint with a random adapter that changes the model's output: B is not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    settings = {"r": 4, "lora_alpha": 8, **settings}
    config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.5)
            elif weight.requires_grad and "lora_A" not in name:
                weight += 0.1
    model.save_pretrained(directory, save_embedding_layers=False)
    (directory / "optimizer.pt").write_bytes(b"resume state, which has no place in a package")
    return directory


def resolved(**changes: Any) -> JobConfig:
    spec: dict[str, Any] = {
        "display_name": "Docs | helper",
        "task": "answer questions",
        "base_model": "tiny",
        "recipe": "finetuneflow",
        "method": "lora",
        "training_data": [{"dataset": "ds_1"}],
        "hyperparameters": {"precision": "fp32", "optim": "adamw_torch", "gradient_checkpointing": False},
        "lora": {"r": 4, "lora_alpha": 8.0},
        "resources": {"gpus": 0},
    }
    return job_config({**spec, **changes})


def series(name: str, points: list[tuple[int, float]]) -> MetricSeries:
    # A log event of a step comes before its evaluation.
    second = name == "eval_loss"
    return MetricSeries(
        name=name,
        points=[MetricPoint(step=step, value=value, sequence=2 * step + second) for step, value in points],
    )


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """An export sets its process's environment, which here is that of all tests."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("tuned")
    base = make_tiny_model(folder / "base")
    return SimpleNamespace(base=base, adapter=random_adapter(base, folder / "step-4"))


@pytest.fixture
def export_input(tuned: SimpleNamespace, tmp_path: Path) -> ExportInput:
    hostile = "a|b\n![x](http://example.org/x.png) `c` <script>" + " long" * 100
    return ExportInput(
        config=resolved(),
        model=ModelFiles(path=tuned.base, id="tiny", revision="r1", weights_sha256="0" * 64, license="Apache-2.0"),
        adapter_dir=tuned.adapter,
        out_dir=tmp_path / "out",
        job=JobOrigin(
            id="ftjob_1",
            create_time="2026-01-02T03:04:05Z",
            datasets=[DatasetFile(id="ds_1", filename="rows.jsonl", sha256="1" * 64)],
        ),
        preflight=PreflightResult(
            base_model=BaseModelIdentity(id="tiny", revision="r1"),
            training_data=DataStatistics(num_examples=1234, mean_tokens=56.78, format="question_answer"),
            evaluation_data=DataStatistics(num_examples=137),
            hardware=Hardware(cpu_model="A processor", cpu_cores=2, packages={"torch": "2.13.0"}),
        ),
        training=TrainingResult(
            total_steps=6,
            train_loss=3.28,
            final_train_loss=2.8,
            best_eval_loss=3.2,
            best_step=4,
            final_eval_loss=3.3,
            train_runtime_seconds=125.4,
            train_samples_per_second=9.5,
            early_stopped=True,
        ),
        evaluation=EvaluationResult(
            base_loss=4.0,
            tuned_loss=3.1987,
            base_perplexity=54.6,
            tuned_perplexity=24.5,
            num_examples=137,
            num_trained_tokens=2000,
            num_answered=137,
            precision="fp32",
            weights="original",
            metrics=[
                MetricComparison(
                    name="loss",
                    base=4.0,
                    tuned=3.1987,
                    gain=0.8013,
                    gain_low=0.7,
                    gain_high=0.9,
                    confidence=0.95,
                    num_rows=137,
                    num_improved=120,
                    num_worsened=17,
                    conclusion="CONCLUSION_BETTER",
                )
            ],
            gate=GateResult(
                decision="GATE_DECISION_REJECT",
                conditions=[
                    ConditionResult(sentence="exact_match at least 0.8: measured 0.1", outcome="GATE_DECISION_REJECT")
                ],
            ),
            findings=["More rows show more."],
            samples=[
                InferenceSample(
                    instruction="What is it?",
                    input=hostile,
                    expected_output="It is a test.",
                    model_output="It is.",
                    output_length=3,
                    base_output="No idea | none",
                )
            ],
        ),
        metrics=[series("loss", TRAIN), series("eval_loss", EVAL)],
    )


@pytest.fixture
def input_file(export_input: ExportInput, tmp_path: Path) -> Path:
    file = tmp_path / "input.json"
    file.write_text(export_input.model_dump_json())
    assert json.loads(file.read_text())["config"]["method"] == "lora"
    return file
