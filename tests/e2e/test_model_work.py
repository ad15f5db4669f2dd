"""Evaluations and exports of a finished job, created through the SDK and the command line."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from finetuneflow import Client, FailedPrecondition, InvalidArgument, NotFound, WorkCancelled
from finetuneflow.resources.job import Job
from tests.e2e.conftest import System

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def finished_job(system: System, rows: Path) -> Job:
    hyperparameters = {"num_epochs": 1, "max_length": 64, "learning_rate": 1e-2}
    with Client(system.address) as client:
        job = client.jobs.create(base_model="tiny", training_data=str(rows), hyperparameters=hyperparameters)
        return client.jobs.wait(job.id)


def ftf(system: System, *arguments: str, code: int = 0) -> str:
    """Runs a command line and returns what it printed."""
    command = [sys.executable, "-m", "finetuneflow.cli", *arguments]
    done = subprocess.run(command, env=system.environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_evaluation_with_other_prompts_generates_their_answers(client: Client, finished_job: Job) -> None:
    """Otherwise a user with another question would have to train again."""
    made = client.evaluations.create(finished_job.tuned_model, prompts=["What is 2 plus 2?"], num_samples=1)
    events = list(client.evaluations.watch(made.id))
    evaluation = client.evaluations.wait(made.id)
    assert [event.sequence for event in events] == list(range(1, evaluation.last_sequence + 1))
    assert {"phase", "sample", "stage_completed"} <= {event.kind for event in events}
    assert [event.sequence for event in client.evaluations.events(made.id)] == [event.sequence for event in events]
    assert evaluation.result is not None
    assert [sample.instruction for sample in evaluation.result.samples][-1] == "What is 2 plus 2?"
    own = client.evaluations.get(finished_job.evaluation_id)
    assert evaluation.delta == pytest.approx(own.delta), "the same model on the same held-out rows"
    assert own.belongs_to_job
    assert [each.id for each in client.evaluations.list(job_id=finished_job.id)] == [made.id, own.id]


def test_rows_of_an_evaluation_are_listed_and_its_gate_decides(client: Client, finished_job: Job) -> None:
    """What became worse is in the rows, and a model that its gate rejects must not look like one to serve."""
    made = client.evaluations.create(
        finished_job.tuned_model,
        metrics=["exact_match", "contains:a"],
        graders=[
            {
                "type": "string_check",
                "name": "long",
                "input": "{{sample.output_text}}",
                "reference": "{{item.question}}",
                "operation": "ne",
            },
            {
                "type": "score_model",
                "name": "judged",
                "model": finished_job.tuned_model,
                "input": [{"role": "user", "content": "{{sample.output_text}}"}],
                "sampling_params": {"max_completions_tokens": 2},
            },
        ],
        gate=[{"metric": "exact_match", "min_value": 0.99}],
        max_new_tokens=4,
    )
    evaluation = client.evaluations.wait(made.id)
    result = evaluation.result
    assert result is not None and result.gate is not None
    assert result.gate.decision == "REJECT" and "exact_match at least 0.99" in result.gate.conditions[0].sentence
    assert result.metric("grader:long").tuned == 1 and result.regression is not None
    assert result.num_reused >= 2 * result.num_examples, "the losses are those of the job's own evaluation"
    assert any("judged" in finding for finding in result.findings), "a random model gives no grade"
    rows = list(client.evaluations.rows(made.id))
    assert [row.index for row in rows] == list(range(result.num_examples))
    assert all(row.base_answer is not None and set(row.tuned_metrics) >= {"exact_match", "contains:a"} for row in rows)
    improved = list(client.evaluations.rows(made.id, change="improved"))
    assert [row.index for row in improved] == [row.index for row in rows if row.changes["loss"] == "IMPROVED"]
    assert len(list(client.evaluations.rows(finished_job.evaluation_id, limit=2))) == 2, "a job's own one too"
    with pytest.raises(InvalidArgument, match="no metric 'bleu'; it has loss, exact_match"):
        list(client.evaluations.rows(made.id, metric="bleu"))
    with pytest.raises(InvalidArgument, match=r"spec.graders\[0\]"):
        client.evaluations.create(finished_job.tuned_model, graders=[{"type": "python", "name": "x"}])
    with pytest.raises(InvalidArgument, match="gpt-5"):
        judge = {"type": "label_model", "name": "x", "model": "gpt-5", "input": [{"role": "user", "content": "?"}]}
        client.evaluations.create(
            finished_job.tuned_model, graders=[{**judge, "labels": ["a", "b"], "passing_labels": ["a"]}]
        )
    lost = {**judge, "model": "ft:ftjob_none", "labels": ["a", "b"], "passing_labels": ["a"]}
    with pytest.raises(NotFound, match="no such fine-tuning job"):
        client.evaluations.create(finished_job.tuned_model, graders=[lost])
    model = client.models.get(finished_job.tuned_model)
    assert model.gate_decision == finished_job.gate_decision is not None


def test_any_two_models_are_compared_on_any_rows(client: Client, finished_job: Job, tmp_path: Path) -> None:
    """Which of two candidates is better, and on the rows of today."""
    rows = tmp_path / "other.jsonl"
    rows.write_text("".join(json.dumps({"question": f"Is {n} odd?", "answer": "Yes."}) + "\n" for n in range(6)))
    steps = sorted(checkpoint.step for checkpoint in client.jobs.checkpoints(finished_job.id))
    early = f"{finished_job.tuned_model}@{steps[0]}"
    short = {"max_new_tokens": 2, "num_samples": 1}
    made = client.evaluations.create(finished_job.tuned_model, against=early, data=rows, **short)
    there = client.evaluations.wait(made.id)
    assert (there.model, there.against) == (finished_job.tuned_model, early)
    assert there.result is not None and there.result.num_examples == 6
    assert [row.expected for row in client.evaluations.rows(made.id)] == ["Yes."] * 6
    back = client.evaluations.create(early, against=finished_job.tuned_model, data=rows, **short)
    turned = client.evaluations.wait(back.id).result
    assert turned is not None
    assert (turned.base_loss, turned.tuned_loss) == (there.result.tuned_loss, there.result.base_loss)
    assert turned.num_reused >= 4 * 6, "nothing of it is new"
    base = client.evaluations.create("tiny", against=finished_job.id, **short)
    untuned = client.evaluations.wait(base.id)
    own = client.evaluations.get(finished_job.evaluation_id)
    assert untuned.delta == pytest.approx(-(own.delta or 0)), "on the job's own held-out rows"
    alone = client.evaluations.wait(client.evaluations.create("tiny", data=rows, **short).id)
    assert alone.result is not None and alone.result.single_model and alone.delta is None
    assert alone.result.num_examples == 6 and alone.result.base_loss is None and alone.job_id == ""
    (first, *_) = client.evaluations.rows(alone.id)
    assert first.base_answer is None and first.tuned_answer is not None and not first.changes
    with pytest.raises(InvalidArgument, match="only one model was measured"):
        list(client.evaluations.rows(alone.id, change="improved"))
    with pytest.raises(InvalidArgument, match="one must be tuned"):
        client.evaluations.create("tiny", against="tiny")
    with pytest.raises(InvalidArgument, match="the same model"):
        client.evaluations.create(early, against=early)
    with pytest.raises(NotFound, match="has no checkpoint of step 999"):
        client.evaluations.create(f"{finished_job.tuned_model}@999")
    with pytest.raises(NotFound, match=r"no dataset 'ds_none'"):
        client.evaluations.create(finished_job.tuned_model, data="ds_none")


def test_second_export_contains_the_same_model(client: Client, finished_job: Job, tmp_path: Path) -> None:
    """A package that differs from the first one would be another model under the same name."""
    made = client.exports.create(finished_job.tuned_model, formats=["adapter"])
    client.exports.wait(made.id)
    client.exports.download(made.id, tmp_path / "again")
    client.exports.download(finished_job.export_id, tmp_path / "first")
    first, again = (zipfile.ZipFile(tmp_path / name / "finetuneflow_export.zip") for name in ("first", "again"))
    assert first.read("adapter_model.safetensors") == again.read("adapter_model.safetensors")
    assert set(first.namelist()) == set(again.namelist())
    assert finished_job.id in again.read("training_config.json").decode(), (
        "the package must refer to the job, not to the export"
    )
    with pytest.raises(FailedPrecondition):
        client.exports.cancel(finished_job.export_id)
    client.exports.delete(made.id)
    with pytest.raises(NotFound):
        client.exports.get(made.id)


def test_the_command_line_evaluates_and_exports(
    system: System, client: Client, finished_job: Job, rows: Path, tmp_path: Path
) -> None:
    shown = ftf(system, "evaluate", finished_job.id, "--num-samples", "1")
    assert "scoring tuned" in shown
    assert "nats per trained token" in shown
    assert "Tuned       " in shown, "the answers must be printed"
    assert "METRIC" in shown and "Gate        " in shown
    (judged, *_) = client.evaluations.list(job_id=finished_job.id, limit=1)
    listed = ftf(system, "evaluations", "rows", judged.id, "--limit", "1")
    assert listed.startswith("Row 0") and "Expected" in listed
    row = json.loads(ftf(system, "evaluations", "rows", judged.id, "--limit", "1", "--json"))
    assert row["source"] == "held_out" and "tuned_answer" in row
    compared = ftf(system, "evaluations", "compare", judged.id, finished_job.evaluation_id)
    assert compared.splitlines()[1].startswith("loss\t")
    ftf(system, "evaluate", finished_job.id, "--gate", "nonsense", code=2)
    alone = ftf(system, "evaluate", "tiny", "--data", str(rows), "--num-samples", "1", "--max-new-tokens", "2")
    assert "only tiny was measured" in alone and "METRIC\tVALUE\tROWS" in alone and "Base   " not in alone
    (single, *_) = client.evaluations.list(limit=1)
    assert ftf(system, "evaluations", "rows", single.id, "--limit", "1").startswith("Row 0  loss ")
    assert json.loads(ftf(system, "evaluations", "get", single.id, "--json"))["result"]["single_model"] is True
    assert "one model" in ftf(system, "evaluations", "list", "--limit", "1")
    out = tmp_path / "package"
    shown = ftf(system, "export", finished_job.tuned_model, "--out", str(out))
    assert (out / "finetuneflow_export.zip").is_file()
    (newest, *_) = client.exports.list(job_id=finished_job.id, limit=1)
    assert newest.id in shown
    lines = ftf(system, "exports", "watch", newest.id, "--json").splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == [str(n) for n in range(1, newest.last_sequence + 1)]
    listed = ftf(system, "exports", "list", "--job", finished_job.id).splitlines()
    assert listed[0].split("\t") == ["ID", "STATE", "MODEL", "RESULT", "CREATED"]
    assert listed[1].startswith(f"{newest.id}\tSUCCEEDED\tft:{finished_job.id}")
    assert json.loads(ftf(system, "exports", "get", newest.id, "--json"))["state"] == "JOB_STATE_SUCCEEDED"
    ftf(system, "download", finished_job.evaluation_id, code=2)
    ftf(system, "download", newest.id, "--out", str(tmp_path / "later"))
    assert (tmp_path / "later" / "report.md").is_file()
    ftf(system, "exports", "delete", newest.id)
    ftf(system, "exports", "get", newest.id, code=2)


def test_cancelled_evaluation_ends_cancelled(client: Client, finished_job: Job) -> None:
    made = client.evaluations.create(finished_job.tuned_model, num_samples=50, max_new_tokens=400)
    client.evaluations.cancel(made.id)
    with pytest.raises(WorkCancelled, match=f"Evaluation {made.id} was cancelled"):
        client.evaluations.wait(made.id)
    client.evaluations.delete(made.id)


def test_refusal_names_alternatives(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="name merged, gguf, or both"):
        client.exports.create("tiny")
    with pytest.raises(NotFound, match="no such fine-tuning job"):
        client.evaluations.create("ftjob_none")
    with pytest.raises(InvalidArgument, match="must be a list"):
        client.evaluations.create("ftjob_none", prompts="one letter each")
