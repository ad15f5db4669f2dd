"""Trainings by several processes (ranks) on the CPU, confined as their supervisor confines them."""

import asyncio
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from chassis.child.child_process import Child, ChildCommand
from chassis.child.spare import Spare
from chassis.security.confinement import Network
from finetuneflow.v1.event_pb2 import Eval, Event, Log, StageFailed
from services.attempt_inputs import child_environment
from services.trainer.settings import TrainerSettings
from services.trainer.worker.child_input import TrainingInput
from services.trainer.worker.recipe import train
from tests.services.trainer.parts import Recorder

MakeInput = Callable[..., Any]
AtEvent = Callable[[Event, Child], None]

# 40 rows: 5 batches in an epoch, so that one of two ranks has none at its end.
COMMON: dict[str, Any] = {
    "lora": {"lora_dropout": 0.0},
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 4,
    "logging_steps": 1,
    "eval_steps": 4,
    "save_steps": 4,
    "total_steps": 8,
    "early_stopping_patience": 0,
}
TWO: dict[str, Any] = {"resources": {"world_size": 2}}


class Run:
    """A training that has ended."""

    def __init__(self, events: Sequence[Event], status: int, lines: Sequence[str], out_dir: Path) -> None:
        self.events, self.status, self.lines, self.out_dir = events, status, lines, out_dir

    def of(self, kind: str) -> list[Any]:
        return [getattr(event, kind) for event in self.events if event.WhichOneof("payload") == kind]

    @property
    def checkpoints(self) -> dict[int, Path]:
        return {saved.step: self.out_dir / saved.path for saved in self.of("checkpoint")}


def run_ranks(
    child_input: TrainingInput,
    tmp_path: Path,
    at_event: AtEvent | None = None,
    network: Network = "own_or_ephemeral",
    writes: Sequence[Path] = (),
) -> Run:
    """Runs an input as the trainer does."""

    async def run() -> Run:
        folder = tmp_path / f"{child_input.out_dir.name}.attempt"
        folder.mkdir()
        file = folder / "input.json"
        file.write_text(child_input.model_dump_json())
        inputs = [
            child_input.model.path,
            child_input.data_dir,
            *child_input.sources.values(),
            *([child_input.resume.path] if child_input.resume else []),
        ]
        command = ChildCommand(
            argv=[sys.executable, "-m", "services.trainer.worker", str(file)],
            out_dir=child_input.out_dir,
            env=child_environment(TrainerSettings(child_threads=2)),
            late_env={"CUDA_VISIBLE_DEVICES": ""},
            network=network,
            writes=writes,
            reads=inputs,
        )
        child = await Spare(None, tmp_path / "spare").start(command, folder)
        events: list[Event] = []
        try:
            async with asyncio.timeout(300):
                async for frame in child.frames():
                    if frame:
                        events.append(event := Event.FromString(frame))
                        if at_event:
                            at_event(event, child)
                status = await child.wait()
        finally:
            child.close()
        return Run(events, status, child.last_lines(), child_input.out_dir)

    return asyncio.run(run())


def figures(logs: Sequence[Log], evals: Sequence[Eval]) -> list[tuple[Any, ...]]:
    trained: list[tuple[Any, ...]] = [(log.step, log.num_tokens, log.learning_rate, log.loss) for log in logs]
    return trained + [(one.step, one.best, one.eval_loss) for one in evals]


def ranks_of(child: Child) -> list[psutil.Process]:
    """The processes of the ranks, in their order."""
    return psutil.Process(child.pid).children()


@pytest.mark.parametrize(
    "case",
    [
        {},
        pytest.param({"group_by_length": True, "gradient_accumulation_steps": 2}, marks=pytest.mark.long),
        pytest.param({"packing": True, "per_device_train_batch_size": 1}, marks=pytest.mark.long),
        pytest.param({"phases": [(24, 1.5), (16, 3.0)]}, marks=pytest.mark.long),
        pytest.param({"method": "full", "gradient_checkpointing": True}, marks=pytest.mark.long),
        pytest.param({"label_smoothing_factor": 0.1}, marks=pytest.mark.long),
        pytest.param(
            {"method": "qlora", "optim": "adamw_torch", "gradient_checkpointing": True}, marks=pytest.mark.long
        ),
    ],
    ids=lambda case: "-".join(case) or "shuffled",
)
def test_two_processes_train_like_one_with_twice_the_accumulation(
    make_input: MakeInput, tmp_path: Path, case: dict[str, Any]
) -> None:
    """More devices must change how long a training takes, and nothing that it learns or reports."""
    case = COMMON | case
    accumulation = case.get("gradient_accumulation_steps", 1)
    alone, single = Recorder(), make_input("alone", **case | {"gradient_accumulation_steps": 2 * accumulation})
    expected = train(single, alone)

    together = run_ranks(make_input("together", **case, **TWO), tmp_path)

    assert together.status == 0, together.lines
    (completed,) = together.of("stage_completed")
    found = figures(together.of("log"), together.of("eval"))
    for mine, other in zip(found, figures(alone.of(Log), alone.of(Eval)), strict=True):
        assert mine == pytest.approx(other, rel=1e-4)
    assert completed.training.best_step == expected.best_step
    assert completed.training.total_steps == expected.total_steps
    name = "model.safetensors" if case.get("method") == "full" else "adapter_model.safetensors"
    weights = [load_file(out / "checkpoints/step-8" / name) for out in (together.out_dir, single.out_dir)]
    assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-4)


def assert_goes_on_exactly(
    make_input: MakeInput, tmp_path: Path, case: dict[str, Any], rank: int, step: int, files: Sequence[str]
) -> None:
    """Kills one of two processes after a step, resumes the training, and compares both with one that nobody killed;
    `files` are those of the last checkpoint."""
    straight = run_ranks(make_input("straight", **case), tmp_path)

    def kill(event: Event, child: Child) -> None:
        if event.log.step == step:
            ranks_of(child)[rank].kill()

    killed = run_ranks(make_input("killed", **case), tmp_path, kill)
    newest = max(killed.checkpoints)
    resumed = run_ranks(make_input("resumed", resume_from=killed.checkpoints[newest], **case), tmp_path)

    assert killed.status == -signal.SIGKILL, killed.lines
    assert f"process {rank + 1} of 2 was ended by SIGKILL" in killed.lines
    assert not killed.of("stage_failed")
    before = {log.step: (log.loss, log.grad_norm, log.learning_rate) for log in straight.of("log")}
    for log in [*killed.of("log"), *resumed.of("log")]:
        assert (log.loss, log.grad_norm, log.learning_rate) == before[log.step], log.step
    assert {log.step for log in resumed.of("log")} == set(range(newest + 1, 9))
    for file in files:
        assert (resumed.checkpoints[8] / file).read_bytes() == (straight.checkpoints[8] / file).read_bytes(), file


def assert_pauses(make_input: MakeInput, tmp_path: Path, case: dict[str, Any]) -> None:
    """Asks the first process to pause, and checks that the training ends with a checkpoint of its last step."""
    case = case | {"total_steps": 5000, "eval_steps": 5000, "save_steps": 5000}

    def pause(event: Event, child: Child) -> None:
        if event.log.step == 3:
            child.control("pause")

    paused = run_ranks(make_input("paused", **case), tmp_path, pause)

    assert paused.status == 0, paused.lines
    assert [each.reason for each in paused.of("stage_released")] == ["PAUSED"]
    assert max(paused.checkpoints) == max(log.step for log in paused.of("log")) < 5000


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("step", [3, 6])
def test_a_killed_process_ends_the_training_and_the_next_one_goes_on_exactly(
    make_input: MakeInput, tmp_path: Path, rank: int, step: int
) -> None:
    """A process that waited for a dead one would hold its device for ever, and one that went on alone would train
    another model."""
    case = COMMON | TWO | {"lora": {"lora_dropout": 0.1}, "save_steps": 2}
    files = ("adapter_model.safetensors", "optimizer.pt", "rng_state_0.pth", "rng_state_1.pth")
    assert_goes_on_exactly(make_input, tmp_path, case, rank, step, files)


@pytest.mark.long
def test_a_pause_is_agreed_on(make_input: MakeInput, tmp_path: Path) -> None:
    """If only one process stopped, the others would wait for it until they are killed, and the steps would be lost."""
    assert_pauses(make_input, tmp_path, COMMON | TWO)


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_cancel_ends_all(make_input: MakeInput, tmp_path: Path, rank: int) -> None:
    """A process left behind would go on using its device."""
    seen: list[psutil.Process] = []

    def cancel(event: Event, child: Child) -> None:
        if event.log.step == 2:
            seen.extend(ranks_of(child))
            child.control("cancel")

    cancelled = run_ranks(make_input("cancelled", **COMMON | TWO | {"total_steps": 5000}), tmp_path, cancel)

    assert [each.reason for each in cancelled.of("stage_released")] == ["CANCELLED"]
    assert len(seen) == 2
    assert not any(process.is_running() for process in seen)


@pytest.mark.long
def test_the_cause_of_a_failure_is_reported(
    make_input: MakeInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that loses its connection to the one that failed fails too, and knows nothing of the cause."""
    (failpoints := tmp_path / "failpoints").mkdir()
    (failpoints / "training.step-3").write_text("raise")
    monkeypatch.setenv("FTF_FAILPOINTS", str(failpoints))

    failed = run_ranks(make_input("failing", **COMMON | TWO), tmp_path, writes=[failpoints])

    failures: list[StageFailed] = failed.of("stage_failed")
    assert [(failure.reason, failure.message) for failure in failures] == [
        ("CRASHED", "FailpointReached: training.step-3")
    ]


@pytest.mark.long
def test_processes_reach_each_other_in_a_network_of_their_own(make_input: MakeInput, tmp_path: Path) -> None:
    """An operator who requires confinement gets no process that reaches the node's network."""
    ended = run_ranks(make_input("own", **COMMON | TWO | {"total_steps": 2}), tmp_path, network="own")
    if ended.lines and ended.lines[-1].startswith("This system refuses a child a network"):
        pytest.skip(ended.lines[-1])
    assert ended.of("stage_completed"), ended.lines
