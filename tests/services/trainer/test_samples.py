"""Answers to the caller's prompts in the middle of a training."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from engine.data.prepare import Prepared
from finetuneflow.v1.event_pb2 import Log
from finetuneflow.v1.stage_result_pb2 import InferenceSample
from services.trainer.worker.recipe import train
from tests.services.trainer.parts import Recorder


def _input(make_input: Any, data_dir: Path, folder: Path, out: str, **evaluation: Any) -> Any:
    data = folder / f"data-{out}"
    shutil.copytree(data_dir, data)
    (data / "prepared.json").write_text(json.dumps(asdict(Prepared("", []))))
    child_input = make_input(out, total_steps=10, more={"data_dir": str(data)})
    settings = child_input.config.evaluation.model_copy(update={"max_new_tokens": 4, **evaluation})
    return child_input.model_copy(update={"config": child_input.config.model_copy(update={"evaluation": settings})})


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_prompts_are_answered_every_few_steps_without_changing_the_training(
    make_input: Any, data_dir: Path, tmp_path: Path, method: str
) -> None:
    """A user sees what the model says long before the evaluation; what is looked at must not change."""
    trained = []
    for out, every in (("watched", 4), ("unwatched", None)):
        sink = Recorder()
        child_input = _input(make_input, data_dir, tmp_path, out, prompts=["What?", "The answer"], prompt_steps=every)
        config = child_input.config.model_copy(update={"method": method})
        train(child_input.model_copy(update={"config": config}), sink)
        samples = sink.of(InferenceSample)
        asked = [(sample.step, sample.instruction) for sample in samples]
        assert asked == [(step, text) for step in (4, 8, 10) for text in ("What?", "The answer") if every]
        assert all(0 < sample.output_length <= 4 for sample in samples)
        assert sink.of(Log)[-1].grad_norm > 0
        trained.append(load_file(child_input.out_dir / "checkpoints/step-10/adapter_model.safetensors"))
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
