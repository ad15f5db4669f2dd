"""An evaluation from input to result, on a random Llama and an adapter that changes it."""

import hashlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from google.protobuf.message import Message
from safetensors.torch import load_file, save_file

from chassis.child.pipe import Cancelled, EventSink
from chassis.events import MAX_EVENT_BYTES, event_of
from engine.config.job import DataSource, job_config
from engine.data.prepare import prepare
from engine.model import load
from engine.model.adapter import attach_lora
from finetuneflow.v1.event_pb2 import ArtifactSaved, Phase, StageCompleted, Warning
from finetuneflow.v1.stage_result_pb2 import EvaluationResult, GateDecision, InferenceSample
from services.child_input import ModelFiles, WholeCheckpoint
from services.evaluator.worker.child_input import EvaluationInput, Side
from services.evaluator.worker.compare import Compare
from services.evaluator.worker.evaluate import ROWS_FILE, evaluate
from services.evaluator.worker.measurements import KIND, RowLoss
from services.evaluator.worker.samples import add_samples
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
    def build(
        adapter: Path = adapter_dir,
        method: str = "lora",
        holdout: float = 0.25,
        given: dict[str, Path] | None = None,
        **evaluation: Any,
    ) -> Any:
        config = job_config(
            {
                "base_model": "tiny",
                "training_data": [{"dataset": "ds_1"}],
                "method": method,
                "holdout_fraction": holdout,
                "hyperparameters": {"precision": "fp32", "max_length": 128},
                "evaluation": {"num_samples": 2, "max_new_tokens": 5, "regression": "none", **evaluation},
            }
        )
        source = tmp_path / "rows.jsonl"
        source.write_text(
            "".join(json.dumps({"question": f"What is {i}?", "answer": f"A number, {i}."}) + "\n" for i in range(12))
        )
        data = tmp_path / "data"
        shutil.rmtree(data, ignore_errors=True)
        prepare(config, model_dir, {"ds_1": source}, data, lambda name, fraction: None)
        model = ModelFiles(path=model_dir, id="tiny", revision="r1", weights_sha256="0" * 64)
        checkpoint = WholeCheckpoint(path=adapter, manifest_sha256=hashlib.sha256(str(adapter).encode()).hexdigest())
        return EvaluationInput(
            config=config,
            base=Side(id="tiny", model=model),
            tuned=Side(id="ft:job", model=model, checkpoint=checkpoint, is_full=method == "full"),
            data_dir=data,
            out_dir=tmp_path / "out",
            threads=1,
            **(given or {}),
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
        "comparing",
    ]


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


def _rows(child_input: EvaluationInput) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (child_input.out_dir / ROWS_FILE).read_text().splitlines()]


def test_every_row_is_kept_with_both_answers_and_losses(make_input: MakeInput) -> None:
    """Five samples of many rows would hide what became worse."""
    child_input = make_input(num_samples=1, metrics=["exact_match", "chrf", "length_words"])
    sink = Recorder()
    result = evaluate(child_input, sink)
    rows = _rows(child_input)
    assert len(rows) == result.num_examples == result.num_answered == 3 and len(result.samples) == 1
    for row in rows:
        assert row["prompt"].endswith("assistant\n") and row["expected"].startswith("A number")
        assert row["base_answer"] != row["tuned_answer"]
        assert set(row["tuned_metrics"]) == {"exact_match", "chrf", "length_words"} == set(row["base_metrics"])
        assert set(row["changes"]) == {"loss", "exact_match", "chrf"}
    weights = [row["num_trained_tokens"] for row in rows]
    mean = sum(row["tuned_loss"] * weight for row, weight in zip(rows, weights, strict=True)) / sum(weights)
    assert mean == pytest.approx(result.tuned_loss)
    assert [metric.name for metric in result.metrics] == ["loss", "perplexity", "exact_match", "chrf", "length_words"]
    saved = [each for each in sink.of(ArtifactSaved) if each.kind == "evaluation_rows"]
    assert [each.path for each in saved] == [ROWS_FILE] and result.rows_path == ROWS_FILE


def test_number_of_answered_rows_is_limited_and_stated(make_input: MakeInput) -> None:
    """All losses are measured; answers cost a hundred times as much."""
    child_input = make_input(max_rows=2, holdout=0.5)
    result = evaluate(child_input, Recorder())
    assert (result.num_examples, result.num_answered) == (6, 2)
    assert any("2 of 6 held-out rows were answered" in finding for finding in result.findings)
    assert any("2 of 2 answers of tiny reached the limit of" in finding for finding in result.findings)
    answered = [row["index"] for row in _rows(child_input) if "tuned_answer" in row]
    assert len(answered) == 2
    evaluate(child_input, Recorder())
    assert [row["index"] for row in _rows(child_input) if "tuned_answer" in row] == answered, "drawn by the seed"


def test_nothing_is_measured_twice(make_input: MakeInput, tmp_path: Path) -> None:
    """A killed evaluation goes on with the rows that it has; a tenant's base model is measured once."""
    child_input = make_input()
    sink = Recorder()
    first = evaluate(child_input, sink)
    # Elsewhere: each evaluation writes files of the same names.
    shutil.copytree(child_input.out_dir / "measurements", tmp_path / "kept")
    names = [Path(each.path).relative_to("measurements") for each in sink.of(ArtifactSaved) if each.kind == KIND]
    files = [tmp_path / "kept" / name for name in names]
    assert files and first.num_reused == 0
    again = evaluate(make_input(given={"measurements": files}), Recorder())
    assert again.num_reused == 2 * 3 + 2 * 3, "losses and answers of both models"
    assert (again.base_loss, again.tuned_loss) == (first.base_loss, first.tuned_loss)
    assert list(again.samples) == list(first.samples)
    other = tmp_path / "other"
    shutil.copytree(child_input.tuned.checkpoint.path, other)
    changed = evaluate(make_input(other, given={"measurements": files}), Recorder())
    assert changed.num_reused == 3 + 3, "another adapter shares only what is of the base model"
    longer = evaluate(make_input(max_new_tokens=6, given={"measurements": files}), Recorder())
    assert longer.num_reused == 2 * 3, "answers of another length are other answers"


def test_gate_decides_and_says_why(make_input: MakeInput, model_dir: Path) -> None:
    """An untouched model must not be promoted, and a caller's conditions count instead of the usual one."""
    untouched = evaluate(make_input(model_dir, method="full"), Recorder())
    assert untouched.gate.decision == GateDecision.GATE_DECISION_INCONCLUSIVE
    assert "gain in loss above 0" in untouched.gate.conditions[0].sentence
    sink = Recorder()
    strict = evaluate(make_input(holdout=0.5, gate=[{"metric": "loss", "max_value": 0.001}]), sink)
    assert strict.gate.decision == GateDecision.GATE_DECISION_REJECT
    assert [each.reason for each in sink.of(Warning)].count("GATE_REJECTED") == 1
    lax = evaluate(make_input(holdout=0.5, gate=[{"metric": "perplexity", "max_value": 1e6}]), Recorder())
    assert lax.gate.decision == GateDecision.GATE_DECISION_PROMOTE


def test_critical_questions_and_the_regression_set_are_measured(make_input: MakeInput, tmp_path: Path) -> None:
    """A better loss on the held-out rows says nothing about what must not break."""
    questions = tmp_path / "questions.jsonl"
    check = {"type": "string_check", "input": "{{sample.output_text}}", "operation": "like"}
    asked = [
        {"prompt": "What is 1?", "must_pass": True, "graders": [{**check, "reference": "never written"}]},
        {"prompt": "What is 2?", "graders": [{**check, "reference": ""}]},
    ]
    questions.write_text("".join(json.dumps(each) + "\n" for each in asked))
    lost = tmp_path / "lost.jsonl"
    lost.write_text("".join(json.dumps({"question": f"Is {n} a number?", "answer": "Yes."}) + "\n" for n in range(4)))
    child_input = make_input(questions="ds_q", regression="ds_r", given={"questions": questions, "regression": lost})
    result = evaluate(child_input, Recorder())
    assert (result.questions.num_questions, result.questions.num_passed, result.questions.num_must_pass) == (2, 1, 1)
    assert list(result.questions.failed_must_pass) == ["What is 1?"]
    assert result.gate.decision == GateDecision.GATE_DECISION_REJECT, "a question that must pass did not"
    assert (result.regression.name, result.regression.num_rows) == ("ds_r", 4)
    assert result.regression.base_loss != result.regression.tuned_loss
    lax = [{"metric": "perplexity", "max_value": 1e6}]
    also = evaluate(make_input(questions="ds_q", gate=lax, given={"questions": questions}), Recorder())
    assert also.gate.decision == GateDecision.GATE_DECISION_REJECT, "whatever else the gate says"
    evaluate(child_input, Recorder())
    rows = _rows(child_input)
    assert [row["source"] for row in rows] == ["held_out"] * 3 + ["question"] * 2
    assert rows[3]["tuned_metrics"] == {"questions": 0, "must_pass": 0}
    general = evaluate(make_input(regression="general"), Recorder())
    assert general.regression.name == "general" and general.regression.num_rows > 80


def test_one_model_is_measured_without_gains(make_input: MakeInput, tmp_path: Path) -> None:
    """A gain of 0 would read as a comparison, and a base loss of 0 as a perfect base model."""
    questions = tmp_path / "questions.jsonl"
    check = {"type": "string_check", "input": "{{sample.output_text}}", "operation": "like", "reference": ""}
    questions.write_text(json.dumps({"prompt": "What is 1?", "must_pass": True, "graders": [check]}) + "\n")
    grader = {**check, "name": "asks", "input": "{{item.question}}", "reference": "What is"}
    pair = make_input(holdout=0.5, metrics=["exact_match", "chrf"])
    compared = evaluate(pair, Recorder())
    gate = [{"metric": "loss", "max_value": 1e6}, {"metric": "exact_match", "min_value": 0.9}]
    child_input = make_input(
        holdout=0.5,
        metrics=["exact_match", "chrf"],
        graders=[grader],
        gate=gate,
        questions="ds_q",
        regression="general",
        given={"questions": questions},
    )
    alone = child_input.model_copy(update={"base": None, "tuned": child_input.base})
    sink = Recorder()
    result = evaluate(alone, sink)
    assert result.single_model and not compared.single_model
    assert result.tuned_loss == pytest.approx(compared.base_loss, abs=1e-5) and not result.HasField("base_loss")
    assert not result.HasField("base_perplexity")
    found = {metric.name: metric for metric in result.metrics}
    assert set(found) == {
        *("loss", "perplexity", "exact_match", "chrf", "grader:asks", "questions", "must_pass", "regression_loss")
    }
    for metric in found.values():
        assert metric.HasField("tuned"), metric
        absent = ("base", "gain", "gain_low", "p_value", "detectable_gain")
        assert not any(metric.HasField(name) for name in absent) and not metric.conclusion, metric
    assert found["grader:asks"].tuned == 1 and result.questions.num_passed == 1
    outcomes = [GateDecision.Name(each.outcome).removeprefix("GATE_DECISION_") for each in result.gate.conditions]
    assert outcomes == ["PROMOTE", "REJECT", "PROMOTE"], "bounds, and the question that must pass"
    rows = _rows(alone)
    assert len(rows) == 7 and all("base_loss" not in row and "base_answer" not in row for row in rows)
    assert all(not row["base_metrics"] and not row["changes"] and row["tuned_metrics"] for row in rows)
    assert [sample.base_output for sample in result.samples] == ["", ""]
    phases = list(dict.fromkeys(phase.name for phase in sink.of(Phase)))
    assert phases == ["loading_model", "scoring", "answering", "comparing"]
    assert not any("No difference" in finding for finding in result.findings)
    without = alone.model_copy(update={"config": make_input().config, "questions": None})
    assert not evaluate(without, Recorder()).HasField("gate"), "nothing is decided that nobody asked for"
    prompts_only = {"config": make_input(prompts=["What is 7?"]).config, "data_dir": tmp_path / "none"}
    asked = evaluate(without.model_copy(update=prompts_only), Recorder())
    assert [sample.instruction for sample in asked.samples] == ["What is 7?"] and not asked.metrics


def test_findings_are_told_without_a_gate(make_input: MakeInput) -> None:
    """Why something was not measured must be said even if nothing is decided."""
    child_input = make_input()
    sides = (child_input.base, child_input.tuned)
    comparing = Compare(child_input.config.evaluation, [], lambda *_: [], Recorder(), sides)
    comparing.add_regression([], [], "not measured, because")
    result = comparing.result(None)
    assert list(result.findings) == ["not measured, because"] and not result.HasField("gate")


@pytest.mark.parametrize(
    ("gate", "after", "shown"),
    [([], 2.0, True), ([], 0.5, False), ([{"metric": "regression_loss", "min_gain": -5.0}], 2.0, False)],
)
def test_shown_regression_is_named_beside_a_gate_that_does_not_regard_it(
    make_input: MakeInput, gate: list[dict[str, Any]], after: float, shown: bool
) -> None:
    """A promoted model that has lost something looked like one that has not."""
    child_input = make_input(regression="general", gate=gate)
    sides = (child_input.base, child_input.tuned)
    comparing = Compare(child_input.config.evaluation, [], lambda *_: [], Recorder(), sides)
    losses = [[RowLoss(value + row / 100, 1) for row in range(20)] for value in (1.0, after)]
    comparing.add_regression(losses[0], losses[1], "")
    result = comparing.result(None)
    assert bool(result.shown_regression) == shown
    if shown:
        assert result.shown_regression.startswith(
            "Its loss on the regression set (general, 20 rows) is 2.0950, that of"
        )
    if gate:
        assert result.gate.decision == GateDecision.GATE_DECISION_PROMOTE, "the caller allows this much"


def test_graders_and_judges_grade_both_models(make_input: MakeInput) -> None:
    """Grader objects of OpenAI's documentation carry over; what a judge says that is no grade is counted."""
    graders = [
        {
            "type": "string_check",
            "name": "asks",
            "input": "{{item.question}}",
            "reference": "What is",
            "operation": "like",
        },
        {
            "type": "score_model",
            "name": "quality",
            "model": "base",
            "input": [{"role": "user", "content": "{{sample.output_text}}"}],
        },
    ]
    child_input = make_input(graders=graders)
    result = evaluate(child_input, Recorder())
    found = {metric.name: metric for metric in result.metrics}
    assert found["grader:asks"].tuned == found["grader:asks"].base == 1
    assert found["grader:quality"].num_rows + 3 >= 3
    assert any("quality" in finding and "no grade" in finding for finding in result.findings), result.findings
    assert all(row["tuned_metrics"]["grader:asks"] == 1 for row in _rows(child_input))


def test_tuned_judge_is_asked_with_the_template_of_its_job(make_input: MakeInput, tmp_path: Path) -> None:
    """It was trained to answer in that form; in another one it grades worse than it can."""
    grader = {"type": "score_model", "name": "quality", "model": "ft:judge"}
    grader["input"] = [{"role": "user", "content": "{{sample.output_text}}"}]  # type: ignore[assignment]
    child_input = make_input(graders=[grader])
    judge = child_input.tuned.model_copy(update={"id": "ft:judge"})
    sink = Recorder()
    evaluate(child_input.model_copy(update={"judges": {"ft:judge": judge}}), sink)
    shutil.copytree(child_input.out_dir / "measurements", tmp_path / "kept")
    names = [Path(each.path).relative_to("measurements") for each in sink.of(ArtifactSaved) if each.kind == KIND]
    files = [tmp_path / "kept" / name for name in names]
    reused = []
    for template in (None, "{% for turn in messages %}Q: {{ turn.content }} A:{% endfor %}"):
        judges = {"ft:judge": judge.model_copy(update={"chat_template": template})}
        changes = {"judges": judges, "measurements": files}
        reused.append(evaluate(child_input.model_copy(update=changes), Recorder()).num_reused)
    assert reused[0] == 2 * 3 + 2 * 3 + 2 * 3, "losses, answers, and the judge's answers"
    assert reused[1] == 2 * 3 + 2 * 3, "the judge reads other tokens"


def test_mistakes_in_questions_and_rows_are_found_before_torch_is_imported(
    make_input: MakeInput, tmp_path: Path
) -> None:
    """Otherwise a caller waits for a model to be loaded, to hear of a missing bracket."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{nonsense\n")
    program = (
        "import sys; from pathlib import Path\n"
        "from chassis.child.pipe import EventSink\nfrom engine.errors import JobError\n"
        "from services.evaluator.worker.__main__ import main\n"
        "try: main(EventSink(None, None), Path(sys.argv[1]))\n"
        "except JobError as error: print(error.reason, 'torch' in sys.modules)\n"
    )
    plain = make_input(questions="ds_q")
    for changes, reason in (
        ({"questions": bad}, "BAD_QUESTIONS"),
        ({"sources": [DataSource(dataset="ds_x")], "files": {"ds_x": bad}}, "BAD_DATA"),
    ):
        file = tmp_path / "input.json"
        file.write_text(plain.model_copy(update={**changes, "data_dir": tmp_path / reason}).model_dump_json())
        command = [sys.executable, "-c", program, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.stdout.split() == [reason, "False"], done.stdout + done.stderr


def test_rows_of_plain_text_are_scored_and_not_graded(make_input: MakeInput, model_dir: Path, tmp_path: Path) -> None:
    """How a text goes on is neither right nor wrong."""
    child_input = make_input()
    source = tmp_path / "texts.jsonl"
    source.write_text(
        "".join(json.dumps({"text": f"Once upon a time there were {n} bears."}) + "\n" for n in range(12))
    )
    data = tmp_path / "texts"
    prepare(child_input.config, model_dir, {"ds_1": source}, data, lambda name, fraction: None)
    result = evaluate(child_input.model_copy(update={"data_dir": data}), Recorder())
    assert [metric.name for metric in result.metrics] == ["loss", "perplexity"]
    assert (result.num_examples, result.num_answered, len(result.samples)) == (3, 0, 2)


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
