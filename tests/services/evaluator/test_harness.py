"""lm-evaluation-harness on both models of an evaluation, in its own process."""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from google.protobuf.message import Message

from chassis.child.child_process import ChildCommand
from chassis.child.phases import Phases
from chassis.child.pipe import Cancelled, EventSink
from chassis.child.spare import Spare
from chassis.events import MAX_EVENT_BYTES
from chassis.security import confinement
from engine.config.job import job_config
from engine.data.prepare import prepare
from engine.errors import JobError, SystemFailure
from engine.model import load
from engine.model.adapter import attach_lora
from finetuneflow.v1.event_pb2 import Event, Phase
from finetuneflow.v1.stage_result_pb2 import EvaluationResult, HarnessResult
from services.child_input import ModelFiles, WholeCheckpoint
from services.evaluator.worker.child_input import EvaluationInput, Side
from services.evaluator.worker.evaluate import PHASES, evaluate
from services.evaluator.worker.harness_process import add_harness, put_values
from services.evaluator.worker.models import Form
from tests.services.evaluator.harness_tasks import DATA, write_tasks
from tests.tiny_models import make_tiny_model

MakeInput = Callable[..., EvaluationInput]
FORM = Form(torch.float32, "cpu")


class Recorder(EventSink):
    """Records the phases."""

    def __init__(self) -> None:
        super().__init__(None, None)
        self.phases: list[Phase] = []

    def emit(self, payload: Message, severity: Any = None) -> None:
        if isinstance(payload, Phase):
            self.phases.append(payload)


class Watcher(Recorder):
    """Sees the process of the harness, which it kills or asks to cancel."""

    def __init__(self, *, kills: bool) -> None:
        super().__init__()
        self._kills = kills
        self.seen: list[psutil.Process] = []

    def requested(self) -> str:
        self.seen = self.seen or [child for child in psutil.Process().children() if _runs_harness(child)]
        if not self.seen or not self._kills:
            return "cancel" if self.seen else ""
        self.seen[0].kill()
        return ""


def _runs_harness(process: psutil.Process) -> bool:
    try:
        return "services.evaluator.harness" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def adapter_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that is far from doing nothing."""
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
                parameter.normal_(std=0.5)
    folder = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(str(folder))
    return folder


@pytest.fixture
def make_input(model_dir: Path, adapter_dir: Path, tmp_path: Path) -> MakeInput:
    def build(tasks: list[str], limit: int | None = None, full: Path | None = None, **more_tasks: str) -> Any:
        config = job_config(
            {
                "base_model": "tiny",
                "training_data": [{"dataset": "ds_1"}],
                "method": "full" if full else "lora",
                "hyperparameters": {"precision": "fp32", "max_length": 128},
                "evaluation": {
                    "num_samples": 1,
                    "max_rows": 1,
                    "max_new_tokens": 3,
                    "regression": "none",
                    "harness_tasks": tasks,
                    **({} if limit is None else {"harness_limit": limit}),
                },
            }
        )
        source = tmp_path / "rows.jsonl"
        source.write_text(
            "".join(json.dumps({"question": f"What is {i}?", "answer": f"{i}."}) + "\n" for i in range(9))
        )
        data = tmp_path / "data"
        prepare(config, model_dir, {"ds_1": source}, data, lambda name, fraction: None)
        model = ModelFiles(path=model_dir, id="tiny", revision="r1", weights_sha256="0" * 64)
        checkpoint = full or adapter_dir
        digest = hashlib.sha256(str(checkpoint).encode()).hexdigest()
        whole = WholeCheckpoint(path=checkpoint, manifest_sha256=digest)
        return EvaluationInput(
            config=config,
            base=Side(id="tiny", model=model),
            tuned=Side(id="ft:job", model=model, checkpoint=whole, is_full=full is not None),
            data_dir=data,
            out_dir=tmp_path / "out",
            threads=1,
            harness_folder=write_tasks(tmp_path / "tasks", **more_tasks),
        )

    return build


def add(child_input: EvaluationInput, sink: EventSink) -> EvaluationResult:
    result = EvaluationResult()
    child_input.out_dir.mkdir(exist_ok=True)
    add_harness(result, child_input, FORM, sink, Phases(sink, PHASES, pausable=False))
    return result


@pytest.mark.long
def test_both_models_get_the_values_of_the_harness(
    make_input: MakeInput, model_dir: Path, adapter_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user compares them with values that others publish, so they must be those of the harness's own command."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    pages = "task: pages\noutput_type: loglikelihood_rolling\ndoc_to_target: '{{question}}'\n"
    pages += "metric_list:\n  - metric: word_perplexity\n  - metric: bits_per_byte\n"
    child_input = make_input(["sums", "choices", "pages"], pages=pages + DATA.format(rows="sums.jsonl"))
    sink = Recorder()

    result = evaluate(child_input, sink).harness

    assert result.version == lm_eval.__version__ and result.chat_template and not result.HasField("limit")
    assert [(each.task, each.metric, each.filter, each.num_rows) for each in result.metrics] == [
        ("sums", "exact_match", "", 6),
        ("colours", "acc", "", 6),
        ("colours", "acc_norm", "", 6),
        ("pages", "word_perplexity", "", 6),
        ("pages", "bits_per_byte", "", 6),
    ]
    sums, colours, _, words, bits = result.metrics
    assert (colours.task_version, bits.higher_is_better) == ("", False)
    assert (sums.task_version, sums.higher_is_better, sums.num_fewshot) == ("1.5", True, 0)
    monkeypatch.chdir(child_input.harness_folder or tmp_path)
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    for side, arguments in (("base", {}), ("tuned", {"peft": str(adapter_dir)})):
        own = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model_dir), "dtype": "float32", **arguments},
            tasks=["sums", "choices", "pages"],
            task_manager=TaskManager(include_path=".", include_defaults=False),
            device="cpu",
            batch_size=1,
            apply_chat_template=True,
        )
        assert own is not None
        assert getattr(sums, side) == own["results"]["sums"]["exact_match,none"]
        assert getattr(colours, side) == pytest.approx(own["results"]["colours"]["acc,none"])
        assert getattr(colours, f"{side}_stderr") == pytest.approx(own["results"]["colours"]["acc_stderr,none"])
        assert getattr(bits, side) == pytest.approx(own["results"]["pages"]["bits_per_byte,none"], rel=1e-5)
    assert not words.HasField("base_stderr"), "the harness has none for it"
    assert bits.base != pytest.approx(bits.tuned, rel=0.01)
    shown = [phase for phase in sink.phases if phase.name == "harness"]
    details = list(dict.fromkeys(phase.detail for phase in shown))
    of_both = [f"{task}, {model}" for model in ("tiny", "ft:job") for task in ("sums", "choices", "pages")]
    assert details == ["sums, choices, pages", *of_both]
    fractions = [phase.fraction for phase in shown if phase.HasField("fraction")]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0


@pytest.mark.long
def test_a_model_measured_alone_has_values_of_the_harness(make_input: MakeInput) -> None:
    """Benchmarks of a base model say which one to tune."""
    child_input = make_input(["sums"]).model_copy(update={"base": None})
    (metric,) = evaluate(child_input, Recorder()).harness.metrics
    assert metric.HasField("tuned") and not metric.HasField("base")


@pytest.mark.long
def test_a_task_that_fails_is_named(make_input: MakeInput) -> None:
    """The caller must know which task to leave out, and the operator which file to correct."""
    lost = "task: lost\noutput_type: generate_until\ndoc_to_target: x\n" + DATA.format(rows="nowhere.jsonl")

    with pytest.raises(JobError) as failed:
        add(make_input(["sums", "lost"], limit=1, lost=lost), Recorder())

    assert failed.value.reason == "HARNESS_TASK_FAILED"
    assert "lost" in failed.value.message and "nowhere.jsonl" in failed.value.message
    assert "harness_tasks" in failed.value.advice


def test_values_of_a_large_group_fit_into_the_event_of_the_result() -> None:
    """An evaluation that has run for hours must not fail because a group has more tasks than an event can hold."""
    many = HarnessResult(version="0.4.13")
    for number in range(260):
        values = {"base": 0.1, "base_stderr": 0.1, "tuned": 0.1, "tuned_stderr": 0.1, "num_rows": 1000}
        many.metrics.add(task=f"a_name_of_usual_length_{number}", task_version="1.0", metric="exact_match", **values)
    result = EvaluationResult()

    put_values(result, many)

    assert result.harness.metrics[:] == many.metrics[:200]
    assert result.findings == ["lm-evaluation-harness: 60 of 260 values are not shown. Name fewer tasks."]
    assert result.ByteSize() < MAX_EVENT_BYTES // 2


def test_a_process_that_is_killed_is_told_apart_and_names_its_task(make_input: MakeInput) -> None:
    """A task that needs too much memory must not look like a defect of the evaluation; the attempt is made again."""
    with pytest.raises(SystemFailure) as failed:
        add(make_input(["sums"]), Watcher(kills=True))

    assert failed.value.reason == "HARNESS_CRASHED"
    assert "SIGKILL" in failed.value.message and "sums" in failed.value.message


def test_a_cancel_ends_the_process(make_input: MakeInput) -> None:
    """A cancelled evaluation must give its cores back at once, not after hours of a benchmark."""
    sink = Watcher(kills=False)

    with pytest.raises(Cancelled):
        add(make_input(["sums"]), sink)

    assert len(sink.seen) == 1 and not sink.seen[0].is_running()


@pytest.mark.long
@pytest.mark.skipif(bool(confinement.missing()), reason=" ".join(confinement.missing()))
async def test_code_of_a_task_is_confined_like_the_worker(make_input: MakeInput, tmp_path: Path) -> None:
    """An operator takes tasks from others; their code must not read the keys of the machine, nor send anything."""
    nosy = "task: nosy\noutput_type: generate_until\ndoc_to_target: x\nprocess_docs: !function code.look\n"
    nosy += "metric_list:\n  - metric: exact_match\n"
    other = make_tiny_model(tmp_path / "other", seed=5)
    child_input = make_input(["nosy"], limit=3, full=other, nosy=nosy + DATA.format(rows="sums.jsonl"))
    assert child_input.harness_folder
    secret = tmp_path / "secret"
    secret.write_text("a key")
    (child_input.harness_folder / "code.py").write_text(
        f"import socket\n"
        f"def look(docs):\n"
        f"    for attempt in (lambda: open({str(secret)!r}), lambda: socket.create_connection(('127.0.0.1', 9))):\n"
        f"        try:\n"
        f"            attempt()\n"
        f"        except PermissionError:\n"
        f"            continue\n"
        f"        raise RuntimeError('it was not refused')\n"
        f"    return docs\n"
    )
    workdir = tmp_path / "work"
    workdir.mkdir()
    out = workdir / "out"
    (workdir / "input.json").write_text(child_input.model_copy(update={"out_dir": out}).model_dump_json())
    tuned = child_input.tuned.checkpoint
    assert tuned
    reads = [child_input.base.model.path, tuned.path, child_input.data_dir, child_input.harness_folder]
    argv = [sys.executable, "-m", "services.evaluator.worker", str(workdir / "input.json")]
    command = ChildCommand(argv, out, env={"OMP_NUM_THREADS": "1"}, reads=reads)

    child = await Spare(None, tmp_path / "spare").start(command, workdir)
    try:
        events = [Event.FromString(frame) async for frame in child.frames() if frame]
        assert await child.wait() == 0, child.last_lines()
    finally:
        child.close()

    assert events[-1].HasField("stage_completed"), (events[-1], child.last_lines())
    harness = events[-1].stage_completed.evaluation.harness
    (measured,) = harness.metrics
    assert (harness.limit, measured.task, measured.num_rows) == (3, "nosy", 3)
    assert measured.HasField("base") and measured.HasField("tuned")
