"""An evaluation from input to result, on a random Llama and an adapter that changes it."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf.message import Message
from safetensors.torch import load_file, save_file

from chassis.child.pipe import Cancelled, EventSink
from chassis.events import MAX_EVENT_BYTES, event_of
from engine.config.job import job_config
from engine.data.prepare import prepare
from engine.model import load
from engine.model.adapter import attach_lora
from finetuneflow.v1.event_pb2 import Phase, StageCompleted, Warning
from finetuneflow.v1.stage_result_pb2 import EvaluationResult, InferenceSample
from services.evaluator.worker.child_input import EvaluationInput
from services.evaluator.worker.compare import add_samples
from services.evaluator.worker.evaluate import evaluate
from services.questions import cut
from tests.tiny_models import make_tiny_model

MakeInput = Callable[..., EvaluationInput]


class Recorder(EventSink):
    """A sink that records what is emitted."""

    def __init__(self, request: str = "") -> None:
        super().__init__(None, None)
        self.payloads: list[Any] = []
        self._request = request

    def emit(self, payload: Message, severity: Any = None) -> None:
        self.payloads.append(payload)

    def requested(self) -> str:
        return self._request

    def of(self, kind: type[Message]) -> list[Any]:
        return [payload for payload in self.payloads if isinstance(payload, kind)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def adapter_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that trained the biases too, and is far from doing nothing."""
    config = job_config({"base_model": "tiny", "training_data": [{"dataset": "ds_1"}], "lora": {"r": 2}})
    torch.manual_seed(3)
    adapted = attach_lora(
        load.load_base(model_dir, dtype=torch.float32, on="cpu"),
        config.lora,
        model_dir=model_dir,
        base_id="tiny",
        revision="r1",
        quantised=False,
        gradient_checkpointing=False,
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    folder = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(str(folder))
    return folder


@pytest.fixture
def make_input(model_dir: Path, adapter_dir: Path, tmp_path: Path) -> MakeInput:
    def build(adapter: Path = adapter_dir, method: str = "lora", holdout: float = 0.25, **evaluation: Any) -> Any:
        config = job_config(
            {
                "base_model": "tiny",
                "training_data": [{"dataset": "ds_1"}],
                "method": method,
                "holdout_fraction": holdout,
                "hyperparameters": {"precision": "fp32", "max_length": 128},
                "evaluation": {"num_samples": 2, "max_new_tokens": 5, **evaluation},
            }
        )
        source = tmp_path / "rows.jsonl"
        source.write_text(
            "".join(json.dumps({"question": f"What is {i}?", "answer": f"A number, {i}."}) + "\n" for i in range(12))
        )
        data = tmp_path / "data"
        prepare(config, model_dir, {"ds_1": source}, data, lambda name, fraction: None)
        return EvaluationInput(
            config=config,
            model={"path": model_dir, "id": "tiny", "revision": "r1", "weights_sha256": "0" * 64},
            adapter_dir=adapter,
            data_dir=data,
            out_dir=tmp_path / "out",
            threads=1,
        )

    return build


def test_both_models_are_evaluated_on_the_same_rows(make_input: MakeInput, model_dir: Path) -> None:
    """Otherwise a user could not tell from the two losses whether the training helped."""
    sink = Recorder()

    result = evaluate(make_input(prompts=["And what is this?"]), sink)

    assert result.num_examples == 3 and result.num_trained_tokens > 10
    assert result.base_loss != pytest.approx(result.tuned_loss, abs=1e-3)
    assert result.base_perplexity == pytest.approx(math.exp(result.base_loss))
    assert result.tuned_perplexity == pytest.approx(math.exp(result.tuned_loss))
    # The base's figures are those of the bare weights.
    same = evaluate(make_input(model_dir, method="full"), Recorder())
    assert same.base_loss == same.tuned_loss == result.base_loss
    asked = sink.of(InferenceSample)
    assert list(result.samples) == asked and len(asked) == 3
    assert asked[0].instruction.startswith("What is ") and asked[0].expected_output.startswith("A number")
    assert (asked[2].instruction, asked[2].expected_output) == ("And what is this?", "")
    assert all(0 < sample.output_length <= 5 and sample.model_output != sample.base_output for sample in asked)
    phases = sink.of(Phase)
    assert list(dict.fromkeys(p.name for p in phases)) == [
        "loading_model",
        "scoring_base",
        "answering_base",
        "scoring_tuned",
        "answering_tuned",
    ]
    assert all(p.count == 5 for p in phases)
    assert phases[-1].fraction == 1.0


def test_model_that_is_worse_than_its_base_is_reported(
    make_input: MakeInput, adapter_dir: Path, tmp_path: Path
) -> None:
    """Such a job succeeds, and its user would find out in production."""
    reported = []
    for sign in (1, -1):
        # Of a small change and its opposite, one makes the loss higher.
        folder = tmp_path / f"adapter{sign}"
        shutil.copytree(adapter_dir, folder)
        tensors = load_file(folder / "adapter_model.safetensors")
        changed = {name: 0.01 * sign * value if "lora_B" in name else value for name, value in tensors.items()}
        save_file(changed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        sink = Recorder()
        result = evaluate(make_input(folder), sink)
        warnings = [each.message for each in sink.of(Warning) if each.reason == "TUNED_MODEL_WORSE"]
        assert bool(warnings) == (result.tuned_loss > result.base_loss)
        reported += warnings
    assert len(reported) == 1 and "worse than its base model" in reported[0]


def test_model_whose_loss_is_no_number_is_reported(make_input: MakeInput, adapter_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapter_dir, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    changed = {name: value * float("nan") for name, value in tensors.items()}
    save_file(changed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    sink = Recorder()
    assert math.isnan(evaluate(make_input(folder), sink).tuned_loss)
    assert "TUNED_MODEL_WORSE" in [each.reason for each in sink.of(Warning)]


def test_no_loss_is_reported_without_held_out_rows(make_input: MakeInput) -> None:
    """A figure that was not measured must not appear as 0."""
    result = evaluate(make_input(holdout=0.0, prompts=["What is 7?"]), Recorder())

    assert not result.HasField("base_loss") and not result.HasField("tuned_perplexity")
    assert [sample.instruction for sample in result.samples] == ["What is 7?"]


def test_disabled_evaluation_ends_at_once(make_input: MakeInput) -> None:
    """Otherwise a user who switched the evaluation off would still wait for one."""
    sink = Recorder()
    assert evaluate(make_input(enabled=False), sink) == EvaluationResult()
    assert not sink.payloads


def test_cancel_ends_the_evaluation(make_input: MakeInput) -> None:
    with pytest.raises(Cancelled):
        evaluate(make_input(), Recorder("cancel"))


def test_a_hundred_long_answers_fit_into_one_event() -> None:
    """The event that completes the stage is limited to 64 KiB; a larger one would fail a job that has succeeded."""
    text = "ä" * 5000
    sample = InferenceSample(
        instruction=text, input=text, expected_output=text, model_output=text, base_output=text, output_length=7
    )
    result = EvaluationResult(base_loss=1.0)

    add_samples(result, [sample] * 100)

    assert len(result.samples) == 100 and result.samples[99].output_length == 7
    assert event_of(StageCompleted(evaluation=result)).ByteSize() < MAX_EVENT_BYTES - 1024
    assert cut("äöü", 6) == "äöü" and cut("äöüä", 6) == "ä…"
