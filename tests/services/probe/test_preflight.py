"""The preflight child with its input file, in this process or in its own."""

import asyncio
import contextlib
import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from safetensors.numpy import save_file

from chassis.child.child_process import ChildCommand
from chassis.child.pipe import EventSink, failure_of
from chassis.child.spare import Spare
from engine.catalogue import Catalogue
from engine.config.job import job_config
from engine.config.spec_proto import resolved_config
from engine.config.start import split_key
from engine.errors import JobError
from engine.evaluation.comparison import CONFIDENCE, _too_few
from finetuneflow.v1 import event_pb2
from finetuneflow.v1.event_pb2 import ArtifactSaved, ConfigResolved, Phase, Warning
from finetuneflow.v1.fine_tuning_job_pb2 import FAULT_USER_ERROR
from services.hardware import read_hardware
from services.probe.settings import ProbeSettings
from services.probe.stage import PreflightStage
from services.probe.worker.preflight import preflight
from tests.tiny_models import make_tiny_tokenizer

MakeInput = Callable[..., Path]


class Recorder(EventSink):
    """Records what is emitted, as the supervisor would."""

    def __init__(self) -> None:
        super().__init__(None, None)
        self.events: list[Message] = []

    def emit(self, payload: Message, severity: Any = None) -> None:
        self.events.append(payload)


@pytest.fixture
def make_input(tmp_path: Path) -> MakeInput:
    folder = make_tiny_tokenizer(tmp_path / "model")
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "hidden_size": 8}
    config |= {"intermediate_size": 16, "vocab_size": 384, "max_position_embeddings": 512}
    config |= {"model_type": "llama", "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))
    weights = {"model.layers.0.self_attn.q_proj.weight": numpy.zeros((8, 8), numpy.float32)}
    save_file(weights, str(folder / "model.safetensors"))
    model = Catalogue(tmp_path / "home", {"tiny": folder}).fetch("tiny")

    def make(rows: list[Any], observed: Sequence[Mapping[str, Any]] = (), **spec: Any) -> Path:
        data = tmp_path / "data.jsonl"
        data.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
        path = tmp_path / "input.json"
        data_fields = {} if "phases" in spec else {"training_data": [{"dataset": "ds_1"}]}
        given = {"base_model": "tiny", **data_fields, **spec}
        path.write_text(
            json.dumps(
                {
                    "config": job_config(given).model_dump(mode="json"),
                    "given": given,
                    "model": {**vars(model), "path": str(model.path)},
                    "sources": {"ds_1": str(data)},
                    "out_dir": str(tmp_path / "out"),
                    "node_id": "node-1",
                    "observed": observed,
                }
            )
        )
        return path

    return make


ROWS = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(60)]


def test_a_job_is_estimated_by_the_trainings_before_it(make_input: MakeInput) -> None:
    """A dry run says 5 minutes because such a training took 5; the job itself must not say 15 seconds."""
    assumed = preflight(Recorder(), make_input(ROWS, method="lora")).preflight.estimate
    measured = {
        "hardware": assumed.hardware,
        "method": "TRAINING_METHOD_LORA",
        "num_parameters": 64,
        "flops_per_token": 1e6,
        "tokens_per_second": 1000,
    }
    known = preflight(Recorder(), make_input(ROWS, [measured], method="lora")).preflight.estimate
    assert (assumed.num_observations, known.num_observations) == (0, 1)
    assert "measured in 1 earlier training" in known.speed_basis


def test_valid_job_is_resolved_counted_and_tokenised(make_input: MakeInput, tmp_path: Path) -> None:
    """Otherwise a user would not learn the number of rows, steps and bytes of a training before it starts."""
    sink = Recorder()
    result = preflight(sink, make_input([*ROWS, ROWS[0]], recipe="cpu-demo")).preflight
    assert (result.training_data.num_examples, result.evaluation_data.num_examples) == (54, 6)
    assert result.total_steps == 7
    assert result.base_model.num_parameters == 64
    assert result.hardware.node_id == "node-1"
    estimate = result.estimate
    assert 0 < estimate.memory_total_bytes < estimate.memory_upper_bytes < estimate.memory_free_bytes
    assert estimate.num_tokens == pytest.approx(result.training_data.num_tokens, rel=0.2)
    assert estimate.duration_seconds > 0
    shards = tmp_path / "out" / result.shards_path
    assert len(datasets.load_from_disk(str(shards / "train"))) == 54
    assert not result.shards_reused
    assert 0 < result.num_packed_sequences < 54
    assert 0 < result.packing_efficiency <= 1

    phases = [event.name for event in sink.events if isinstance(event, Phase)]
    assert list(dict.fromkeys(phases)) == [
        "checking_hardware", "resolving_model", "reading_rows", "tokenising", "resolving_configuration",
    ]  # fmt: skip
    saved = [(event.kind, event.path) for event in sink.events if isinstance(event, ArtifactSaved)]
    assert saved == [("validation_report", "validation_report.json"), ("shards", f"shards/{result.shards_content_key}")]
    report = json.loads((tmp_path / "out" / "validation_report.json").read_text())
    assert (report["verdict"], report["problems"][0]["reason"]) == ("warnings", "DUPLICATE_ROW")
    assert (report["problems"][0]["row"], report["training_data"]["num_examples"]) == (61, 54)
    assert [event.reason for event in sink.events if isinstance(event, Warning)] == ["DUPLICATES_DROPPED"]
    (published,) = (event for event in sink.events if isinstance(event, ConfigResolved))
    config = resolved_config(published.resolved_spec)
    assert config.method == "lora"
    assert config.hyperparameters.gradient_checkpointing is not None
    assert "auto" not in (config.hyperparameters.precision, config.hyperparameters.optim)


def test_token_shards_of_an_earlier_job_are_reused(make_input: MakeInput, tmp_path: Path) -> None:
    """A second job on the same data is not tokenised again, says so, and trains on the same ids; with packing, too."""
    rows = [*ROWS, ROWS[0]]
    first = preflight(Recorder(), make_input(rows)).preflight
    made = (tmp_path / "out").rename(tmp_path / "made")
    path = make_input(rows, hyperparameters={"packing": True})
    path.write_text(json.dumps({**json.loads(path.read_text()), "shards": str(made / first.shards_path)}))
    sink = Recorder()
    second = preflight(sink, path).preflight
    assert second.shards_reused
    assert second.shards_content_key == first.shards_content_key
    assert (second.training_data, second.evaluation_data) == (first.training_data, first.evaluation_data)
    assert second.total_steps < first.total_steps
    phases = [(event.name, event.detail) for event in sink.events if isinstance(event, Phase)]
    assert "reading_rows" not in [name for name, _ in phases]
    assert "earlier job" in dict(phases)["tokenising"]
    assert [event.reason for event in sink.events if isinstance(event, Warning)] == ["DUPLICATES_DROPPED"]
    assert (tmp_path / "out" / second.shards_path / "eval_rows.jsonl").is_file()


@pytest.mark.parametrize(("rows", "warned"), [(50, True), (60, False)])
def test_held_out_rows_that_decide_nothing_are_reported(make_input: MakeInput, rows: int, warned: bool) -> None:
    """After the evaluation, which would be inconclusive, it is too late to hold out more."""
    sink = Recorder()
    held_out = preflight(sink, make_input(ROWS[:rows])).preflight.evaluation_data.num_examples
    said = [event.message for event in sink.events if isinstance(event, Warning) and "held out" in event.message]
    assert bool(said) == warned == (held_out < 6)
    assert not warned or said[0].startswith(f"Only {held_out} rows are held out: with fewer than 6,")
    assert _too_few(5, CONFIDENCE) and not _too_few(6, CONFIDENCE), "the rule of the evaluation"


@pytest.mark.parametrize(("changed", "warned"), [({}, False), ({"seed": 7}, True), ({"holdout_fraction": 0.0}, False)])
def test_held_out_rows_that_the_adapter_may_have_seen_are_reported(
    make_input: MakeInput, changed: dict[str, Any], warned: bool
) -> None:
    """The loss of such rows flatters the model."""
    earlier = split_key(job_config({"base_model": "tiny", "training_data": [{"dataset": "ds_1"}]}))
    path = make_input(ROWS, start_from="ft:job_1@5", **changed)
    values = json.loads(path.read_text())
    values["trained_data"] = [{"datasets": ["ds_1"], "split_key": earlier}]
    path.write_text(json.dumps(values))
    sink = Recorder()
    preflight(sink, path)
    warnings = [event for event in sink.events if isinstance(event, Warning) and event.reason == "EVALUATION_LEAKED"]
    assert bool(warnings) == warned


def test_evaluation_that_cannot_work_is_reported_before_the_training(make_input: MakeInput, tmp_path: Path) -> None:
    """Found by the evaluation, it would cost the training."""
    check = {"type": "string_check", "input": "{{sample.output_text}}", "operation": "like"}
    graders = [
        {**check, "name": "typo", "reference": "{{item.anwser}}"},
        {**check, "name": "right", "reference": "{{item.answer}}"},
    ]
    sink = Recorder()
    preflight(sink, make_input(ROWS, evaluation={"graders": graders}))
    warnings = [each for each in sink.events if isinstance(each, Warning)]
    warned = [each.message for each in warnings if each.reason == "GRADER_VALUE_MISSING"]
    assert len(warned) == 1 and "Grader typo needs item.anwser" in warned[0]

    path = make_input(ROWS, evaluation={"questions": "ds_q", "regression": "ds_r"})
    given = json.loads(path.read_text())
    for name, rows in (("ds_q", [{"prompt": "x", "graders": []}]), ("ds_r", [{"question": "no answer"}])):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given["sources"][name] = str(file)
    path.write_text(json.dumps(given))
    with pytest.raises(JobError) as raised:
        preflight(Recorder(), path)
    assert raised.value.reason == "BAD_QUESTIONS" and "row 1" in raised.value.message
    file = tmp_path / "ds_q.jsonl"
    file.write_text(json.dumps({"prompt": "x", "graders": [{**check, "reference": "y"}]}) + "\n")
    with pytest.raises(JobError, match=r"evaluation\.regression"):
        preflight(Recorder(), path)


def test_curriculum_is_counted_per_phase(make_input: MakeInput) -> None:
    """Steps and cost are those of all phases, and the first step of each phase is known before the training."""
    source = [{"dataset": "ds_1"}]
    phases = [
        {"display_name": "warm", "training_data": source, "num_epochs": 0.5},
        {"training_data": source, "num_epochs": 3.0},
    ]
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    path = make_input(ROWS, phases=phases, hyperparameters=settings)
    result = preflight(Recorder(), path).preflight
    # 54 rows are left of 60: 27 and 162 in steps of 8.
    assert result.total_steps == 24
    assert [(phase.display_name, phase.num_epochs, phase.first_step) for phase in result.phases] == [
        ("warm", 0.5, 1), ("", 3.0, 4),
    ]  # fmt: skip
    assert [phase.training_data.num_examples for phase in result.phases] == [54, 54]
    assert result.estimate.num_tokens == pytest.approx(3.5 * result.phases[0].training_data.num_tokens, rel=0.3)


def test_too_small_disk_for_checkpoints_fails_preflight(make_input: MakeInput, tmp_path: Path) -> None:
    """The job must not fail in its third hour; a nearly full disk is reported as such."""

    def with_free(num_bytes: int) -> Path:
        hardware = read_hardware("node-1", tmp_path)
        hardware.disk_free_bytes = num_bytes
        path = make_input(ROWS, recipe="cpu-demo")
        values = json.loads(path.read_text()) | {"hardware": MessageToDict(hardware, preserving_proto_field_name=True)}
        path.write_text(json.dumps(values))
        return path

    disk = preflight(Recorder(), with_free(1 << 40)).preflight.estimate.disk
    assert disk.needed_bytes > disk.num_checkpoints * disk.checkpoint_bytes > 0
    sink = Recorder()
    preflight(sink, with_free(int(disk.needed_bytes / 0.9)))
    assert [event.reason for event in sink.events if isinstance(event, Warning)] == ["DISK_TIGHT"]
    with pytest.raises(JobError) as caught:
        preflight(Recorder(), with_free(disk.needed_bytes))
    assert caught.value.reason == "DISK_TOO_SMALL"
    assert "save_total_limit" in caught.value.advice


async def test_warm_spare_runs_a_preflight(make_input: MakeInput, tmp_path: Path) -> None:
    """Its imports take as long as the preflight of a small data set, and are done before the job arrives."""
    file = make_input(ROWS)
    stage = PreflightStage(ProbeSettings(home=tmp_path / "home"), Catalogue(tmp_path / "home", {}))
    spare = Spare(stage.spare(), tmp_path / "spare")
    spare.open()
    async with asyncio.timeout(60):
        while not spare.pid:  # noqa: ASYNC110 - it sends no notification
            await asyncio.sleep(0.05)
        pid = spare.pid
        command = ChildCommand([*stage.spare().argv, str(file)], tmp_path / "out", stage.spare().env)
        child = await spare.start(command, tmp_path)
        assert child.pid == pid
        async with contextlib.aclosing(child.frames()) as frames:
            events = [event_pb2.Event.FromString(frame) async for frame in frames if frame]
        await child.wait()
        await spare.close()
    assert events[-1].stage_completed.preflight.training_data.num_examples == 54, (events[-1], child.last_lines())


def run(input_file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.probe.worker", str(input_file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_child_without_supervisor_prints_its_findings(make_input: MakeInput) -> None:
    """Used to debug a preflight without a broker."""
    done = run(make_input(ROWS))
    assert done.returncode == 0, done.stderr
    assert "stage_completed" in done.stdout
    assert "tokenising" in done.stdout


@pytest.mark.long
def test_model_that_llama_cpp_does_not_know_is_refused_before_the_training(make_input: MakeInput) -> None:
    """The failed export of a trained model would come hours later."""
    with pytest.raises(JobError, match="how its tokenizer splits texts") as error:
        preflight(Recorder(), make_input(ROWS, export={"formats": ["adapter", "gguf"]}))
    assert error.value.reason == "GGUF_UNSUPPORTED" and "Leave gguf out of export.formats" in error.value.advice


def test_invalid_row_fails_preflight_as_user_error(make_input: MakeInput, tmp_path: Path) -> None:
    """With fault, row and advice, and without a traceback."""
    done = run(make_input([*ROWS[:16], '{"question": "Q", }\n']))
    assert done.returncode != 0
    assert "USER_ERROR" in done.stdout
    assert "row 17: not JSON" in done.stdout
    report = json.loads((tmp_path / "out" / "validation_report.json").read_text())
    assert (report["verdict"], report["problems"][0]["row"]) == ("refused", 17)
    assert "Traceback" not in done.stderr


def test_hardware_is_read_without_torch(tmp_path: Path) -> None:
    """The serving process reads it too."""
    hardware = read_hardware("n", tmp_path / "not" / "there")
    assert hardware.cpu_cores >= 1
    assert 0 < hardware.memory_available_bytes <= hardware.memory_total_bytes
    assert hardware.disk_free_bytes > 0
    assert hardware.packages["transformers"]
    code = "import sys; from services import hardware; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("limits", "reason", "said"),
    [
        ({"tokens": 100}, "TOO_MANY_TOKENS", "100 tokens"),
        ({"shard_bytes": 1000}, "SHARDS_TOO_LARGE", "1,000 bytes"),
        ({"processor_seconds": 0.01, "processor_setting": "X"}, "PROCESSOR_TIME_EXCEEDED", "0.01 seconds"),
    ],
    ids=["tokens", "shards", "processor time"],
)
def test_a_job_beyond_a_limit_is_a_user_error_that_says_how_much(
    make_input: MakeInput, limits: dict[str, Any], reason: str, said: str
) -> None:
    """One job could otherwise hold a probe for days, or fill its disk; and it would be tried again."""
    path = make_input(ROWS)
    path.write_text(json.dumps({**json.loads(path.read_text()), "limits": limits}))
    with pytest.raises(JobError, match=said) as caught:
        preflight(Recorder(), path)
    failed = failure_of(caught.value)
    assert (failed.reason, failed.fault) == (reason, FAULT_USER_ERROR)


def test_dropped_and_truncated_rows_are_reported_before_training(make_input: MakeInput, tmp_path: Path) -> None:
    """A job of 52,000 rows is not refused for two empty answers, and the user is told."""
    chats = [
        {"messages": [{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": "A"}]} for n in range(60)
    ]
    chats[7]["messages"].append({"role": "user", "content": "Thanks"})
    empty = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": " "}]}
    chats[7]["messages"].insert(0, {"role": "assistant", "content": "Hello."})
    sink = Recorder()
    result = preflight(sink, make_input([*chats, empty, empty], recipe="cpu-demo")).preflight
    assert (result.training_data.num_examples, result.training_data.num_left_out) == (54, 2)
    warnings = {event.reason: event.message for event in sink.events if isinstance(event, Warning)}
    assert warnings["ROWS_LEFT_OUT"].startswith("2 rows are incomplete and dropped")
    assert warnings["TURNS_LEFT_OUT"].startswith("1 row is shortened")
    report = json.loads((tmp_path / "out" / "validation_report.json").read_text())
    assert [(p["row"], p["reason"], p["severity"]) for p in report["problems"]] == [
        (8, "LEADING_TURNS", "warning"), (8, "TRAILING_TURNS", "warning"),
        (61, "EMPTY_VALUE", "warning"), (62, "EMPTY_VALUE", "warning"),
    ]  # fmt: skip


def test_one_row_without_trained_tokens_is_reported_in_singular(make_input: MakeInput) -> None:
    """The message ends with "no token of it" and not "of them"."""
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "train": False}]
    chats = [[{"role": "user", "content": f"Q{n}"}, {"role": "assistant", "content": "A"}] for n in range(60)]
    sink = Recorder()
    preflight(sink, make_input([{"messages": each} for each in [*chats, turns]], recipe="cpu-demo"))
    warnings = {event.reason: event.message for event in sink.events if isinstance(event, Warning)}
    assert warnings["ROWS_DROPPED"] == "1 row is dropped: no token of it would be trained."


def test_report_contains_file_problems_and_row_problems(make_input: MakeInput, tmp_path: Path) -> None:
    """Otherwise the report on a decompression bomb would name only one long row."""
    input_file = make_input([])
    bomb = tmp_path / "data.jsonl.gz"
    bomb.write_bytes(gzip.compress(b"a" * (65 * 2**20)))
    input_file.write_text(input_file.read_text().replace(str(tmp_path / "data.jsonl"), str(bomb)))
    with pytest.raises(JobError) as refused:
        preflight(Recorder(), input_file)
    assert refused.value.reason == "DECOMPRESSION_BOMB"
    report = json.loads((tmp_path / "out" / "validation_report.json").read_text())
    assert {problem["reason"] for problem in report["problems"]} == {"ROW_TOO_LONG", "DECOMPRESSION_BOMB"}


@pytest.mark.parametrize(
    ("truncation", "lost"), [("keep_start", "truncated answer ends"), ("keep_end", "its beginning")]
)
def test_truncated_row_reports_its_lost_tokens(make_input: MakeInput, truncation: str, lost: str) -> None:
    sink = Recorder()
    long = [{"question": f"What is {n}?", "answer": f"It is {n}. " * 40} for n in range(30)]
    preflight(sink, make_input(long, hyperparameters={"max_length": 64, "truncation": truncation}))
    advice = {event.reason: event.advice for event in sink.events if isinstance(event, Warning)}
    assert lost in advice["ROWS_TRUNCATED"]
