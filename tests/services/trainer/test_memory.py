"""Out-of-memory errors are reported with advice, and retries use smaller micro-batches."""

import re
import resource
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from chassis.child import out_of_memory
from engine.config.job import job_config
from engine.config.micro_batch import shrink
from engine.config.spec_proto import config_to_spec, resolved_config
from finetuneflow.cli.config import apply_setting
from finetuneflow.v1.event_pb2 import StageFailed
from finetuneflow.v1.fine_tuning_job_pb2 import FAULT_SYSTEM_ERROR
from services.trainer.worker import oom
from tests.services.trainer.children import Child, run
from tests.services.trainer.parts import rows
from tests.tiny_models import make_tiny_model

MakeInput = Callable[..., Any]
MIB = 2**20


class OutOfMemoryError(Exception):
    """An error of the name that Ray's has."""


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "CUDA_OUT_OF_MEMORY"),
        (torch.AcceleratorError("CUDA error: out of memory", 2), "CUDA_OUT_OF_MEMORY"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(h)`"), "CUDA_OUT_OF_MEMORY"),
        (MemoryError(), "HOST_OUT_OF_MEMORY"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), "HOST_OUT_OF_MEMORY"),
        (RuntimeError("unable to mmap 9 bytes: Cannot allocate memory (12)"), "HOST_OUT_OF_MEMORY"),
        (OSError(12, "Cannot allocate memory"), "HOST_OUT_OF_MEMORY"),
        (OutOfMemoryError("Task was killed due to the node running low on memory."), "HOST_OUT_OF_MEMORY"),
        (ValueError("no answer in row 3: 'why is my GPU out of memory?'"), ""),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered", 700), ""),
    ],
)
def test_the_out_of_memory_errors_of_all_libraries_are_recognised(error: Exception, reason: str) -> None:
    """Otherwise the job would be retried as after a crash, with the same settings, and fail again."""
    assert out_of_memory.reason_of(error) == reason


def test_memory_advice_contains_numbers_of_the_job(make_input: MakeInput) -> None:
    """ "Lower the batch size" leaves a user guessing to which value, and with one row it cannot be lowered."""
    config = make_input(per_device_train_batch_size=8, gradient_accumulation_steps=2).config
    assert "per_device_train_batch_size=4 --set hyperparameters.gradient_accumulation_steps=4" in oom.advice(config)
    config = make_input(per_device_train_batch_size=1, max_length=128).config
    assert "batch_size" not in oom.advice(config)
    values: dict[str, Any] = {"base_model": "tiny", "training_data": [{"dataset": "ds_1"}]}
    for setting in re.findall(r"--set (\S+?)[;,.]? ", oom.advice(config)):
        apply_setting(values, setting)
    assert (job_config(values).method, job_config(values).hyperparameters.gradient_checkpointing) == ("qlora", True)
    assert "gradient_checkpointing=true; hyperparameters.max_length below 128; --set method=qlora" in oom.advice(config)


def _fail_at_step(step: int, kind: str) -> None:
    """Makes this process run out of memory in the forward pass of a step, while another thread never ends."""
    from transformers import LlamaModel

    from services.trainer.worker.events import TrainingCallback

    # Python waits for such threads when it ends by itself.
    threading.Thread(target=threading.Event().wait).start()
    forward, begin = LlamaModel.forward, TrainingCallback.on_step_begin
    reached = []

    def noted(self: Any, args: Any, state: Any, control: Any, **more: Any) -> Any:
        if state.global_step + 1 == step:
            reached.append(step)
        return begin(self, args, state, control, **more)

    def failing(self: Any, *args: Any, **more: Any) -> Any:
        if reached:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried 2 GiB.") if kind == "cuda" else MemoryError
        return forward(self, *args, **more)

    TrainingCallback.on_step_begin = noted  # type: ignore[method-assign]
    LlamaModel.forward = failing


def failure(child: Child) -> StageFailed:
    (failed,) = child.of("stage_failed")
    assert child.status == 1, child.stderr
    assert failed.fault == FAULT_SYSTEM_ERROR
    return failed  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "reason"), [("cuda", "CUDA_OUT_OF_MEMORY"), ("host", "HOST_OUT_OF_MEMORY")])
def test_child_that_runs_out_of_memory_reports_it_and_ends(make_input: MakeInput, kind: str, reason: str) -> None:
    """A child that hangs afterwards keeps the memory that the next attempt needs."""
    child = run(make_input(), before=_fail_at_step, args=(7, kind))

    failed = failure(child)
    assert failed.reason == reason and failed.message
    assert "per_device_train_batch_size=2 --set hyperparameters.gradient_accumulation_steps=2" in failed.advice
    assert max(child.checkpoints) == 5
    assert "Traceback" in child.stderr and "forward" in child.stderr


def _headroom(num_bytes: int) -> None:
    """Limits the additional memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + num_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _next_attempt(child_input: Any, cause: str) -> Any:
    """Returns the configuration of the next attempt, made as a gateway makes it."""
    wire = config_to_spec(child_input.config)
    assert shrink(wire, [], cause)
    return resolved_config(wire).hyperparameters


@pytest.fixture(scope="module")
def deep_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("deep") / "tiny", num_layers=12)


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    Dataset.from_list(rows(32, 1, shortest=450, longest=500)).save_to_disk(str(folder / "train"))
    return folder


def test_job_that_runs_out_of_memory_continues_with_smaller_micro_batches(
    make_input: MakeInput, deep_model: Path, long_rows: Path
) -> None:
    """A step keeps its rows, and training resumes from the checkpoint; users need not know the memory of a row."""
    sizes: dict[str, Any] = {"max_length": 512, "total_steps": 1, "logging_steps": 1}
    sizes |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "held_out": False}
    sizes["lora"] = {"lora_dropout": 0.0}

    def build(name: str, **more: Any) -> Any:
        child_input = make_input(name, **sizes | more)
        child_input.model.path, child_input.data_dir = deep_model, long_rows
        return child_input

    straight = run(build("straight"))
    child_input, attempts = build("first"), []
    while True:
        child = run(child_input, before=_headroom, args=(600 * MIB,))
        attempts.append((child_input.config.hyperparameters.per_device_train_batch_size, child.status))
        if child.status == 0:
            break
        assert failure(child).reason == "HOST_OUT_OF_MEMORY"
        smaller = _next_attempt(child_input, failure(child).reason)
        child_input = build(
            f"smaller{len(attempts)}",
            per_device_train_batch_size=smaller.per_device_train_batch_size,
            gradient_accumulation_steps=smaller.gradient_accumulation_steps,
        )

    assert attempts[0] == (8, 1) and attempts[-1][0] in (2, 4)
    assert [log.num_tokens for log in child.of("log")] == [log.num_tokens for log in straight.of("log")]
    assert [log.loss for log in child.of("log")] == pytest.approx([log.loss for log in straight.of("log")], rel=1e-4)
