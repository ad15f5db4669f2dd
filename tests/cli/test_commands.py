import json
import os
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import Result

from finetuneflow import JobCancelled, JobFailed, WorkCancelled, WorkFailed
from finetuneflow.cli.exits import exit_code
from finetuneflow.resources.export import Export
from finetuneflow.resources.job import Job
from finetuneflow.v1 import event_pb2, export_pb2, stage_result_pb2
from finetuneflow.v1 import fine_tuning_job_pb2 as job_pb
from tests.cli.conftest import Ftf
from tests.fakes.gateway import JOB, FakeGateway, Running, history, refuse


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n')
    return path


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_followed_training_is_clean_lines_in_a_pipe(ftf: Ftf, rows: Path) -> None:
    result = ftf("train", rows, "--model", "smollm2-135m")
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    assert "training    step 20/20  loss 2.0000" in result.stdout
    assert "preflight   counting tokens (2 of 4)" in result.stdout
    assert "base 4.0000, tuned 3.0000 (-1.0000)" in result.stdout
    assert f"ftf download {JOB}" in result.stdout


def test_json_is_one_event_a_line_and_nothing_else(ftf: Ftf, rows: Path, gateway: FakeGateway) -> None:
    gateway.cut_watch_after = [4]
    result = ftf("train", rows, "--model", "m", "--json")
    assert result.exit_code == 0
    events = lines(result.stdout)
    assert [event["sequence"] for event in events] == [str(n) for n in range(1, len(gateway.events) + 1)]
    assert events[-1]["state_changed"] == {"state": "JOB_STATE_SUCCEEDED", "stage": "STAGE_TRAINING"}


def test_a_failed_job_is_exit_code_1_with_the_command_that_helps(ftf: Ftf, gateway: FakeGateway) -> None:
    gateway.events = history(failed=True)
    result = ftf("jobs", "watch", JOB)
    assert result.exit_code == 1
    assert result.stdout.count("row 17 has no answer") == 1, "told once"
    assert f"ftf jobs explain {JOB}" in result.stdout
    explained = ftf("jobs", "explain", JOB)
    assert explained.exit_code == 0
    assert explained.stdout.count("row 17 has no answer") == 1
    assert explained.stdout.count("correct row 17") == 1
    assert "| ValueError: no answer" in explained.stdout


def test_a_promoted_model_that_has_lost_something_is_shown_so(ftf: Ftf, gateway: FakeGateway) -> None:
    """`promoted` alone would say that nothing is wrong."""
    assert "regression" not in ftf("jobs", "get", JOB).stdout
    gateway.shown_regression = "Its loss on the regression set is 2."
    shown = ftf("jobs", "get", JOB).stdout
    assert f"Tuned model ft:{JOB} (promoted, although a regression is shown)" in shown
    assert "Regression  Its loss on the regression set is 2." in shown


def test_ctrl_c_detaches_and_says_how_to_return(ftf: Ftf, gateway: FakeGateway) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    gateway.events = gateway.events[:6]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("finetuneflow.cli.lines.log_figures", interrupt)
        result = ftf("jobs", "watch", JOB)
    assert result.exit_code == 130
    assert f"ftf jobs watch {JOB}" in result.stderr


def test_bad_input_is_exit_code_2_with_the_field(ftf: Ftf, rows: Path, gateway: FakeGateway) -> None:
    result = ftf("train", rows, "--model", "m", "--set", "lora.rank=3", "--set", "learning_rate=1e-3")
    assert result.exit_code == 2
    assert "spec.lora.rank: there is no such field; did you mean `r`?" in result.stderr
    assert "hyperparameters.learning_rate" in result.stderr
    gateway.refusals["CreateFineTuningJob"] = lambda context: refuse(
        context, grpc.StatusCode.INVALID_ARGUMENT, "bad spec", "INVALID_CONFIG", [("spec.seed", "negative")]
    )
    result = ftf("train", rows, "--model", "m", "--set", "seed=-1")
    assert result.exit_code == 2
    assert "  spec.seed: negative" in result.stderr
    assert ftf("jobs", "get", "ftjob_nope").exit_code == 2
    assert ftf("train", rows, "--nonsense").exit_code == 2


def test_no_server_is_exit_code_3(ftf: Ftf, server: Running) -> None:
    server.stop()
    for command in (["jobs", "list"], ["doctor"]):
        result = ftf("--address", server.address, *command)
        assert result.exit_code == 3
        assert server.address in result.output
        assert f"ftf up --port {server.address.rpartition(':')[2]}" in result.output


def test_what_no_server_could_check_is_said(ftf: Ftf, rows: Path, server: Running) -> None:
    """Mistakes that this side finds look like all there are, and the next try finds more."""
    server.stop()
    result = ftf("train", rows, "-m", "m", "--dry-run", "--set", "bogus=1", "--set", "lora.r=0", "--json")
    error = json.loads(result.stderr)["error"]
    assert (result.exit_code, [each["field"] for each in error["violations"]]) == (2, ["spec.bogus"])
    assert "ranges and recipes were not checked" in error["advice"]
    assert server.address in error["advice"]


def test_a_detached_and_a_dry_run(ftf: Ftf, rows: Path, gateway: FakeGateway) -> None:
    result = ftf("train", rows, "--model", "m", "--detach")
    assert result.exit_code == 0
    assert f"ftf jobs watch {JOB}" in result.stdout
    assert lines(ftf("train", rows, "-m", "m", "-d", "--json").stdout)[0]["id"] == JOB
    result = ftf("train", rows, "--model", "m", "--dry-run", "--set", "lora.r=32")
    assert result.exit_code == 0
    assert "[lora]\nr = 32" in result.stdout
    for said in ("method\tlora\tit fits", "weights\t6.00 GiB", "hyperparameters.packing\tfalse\ttrue", "would run"):
        assert said in result.stdout
    assert "512.0 MiB of weights to download, or to convert if the model is built in" in result.stdout
    assert not any(request.validate_only for request in gateway.requests("CreateFineTuningJob"))
    result = ftf("train", rows, "--model", "m", "--dry-run", "--set", "hyperparameters.num_epochs=100")
    assert result.exit_code == 2
    assert "Refused: It is too small. Grow. [DISK_TOO_SMALL]" in result.stdout
    assert len(gateway.requests("CreateFineTuningJob")) == 2


def test_a_config_file_flags_and_settings_add_up(
    ftf: Ftf, rows: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATE", "5e-4")
    config = rows.parent / "job.toml"
    config.write_text(
        'base_model = "a"\ntraining_data = "train.jsonl"\nsystem_prompt = "null"\n'
        '[hyperparameters]\nlearning_rate = "${RATE}"\nnum_epochs = 3\n'
    )
    result = ftf("train", "--config", config, "-m", "b", "--set", "hyperparameters.num_epochs=1", "--detach")
    assert result.exit_code == 0, result.output
    spec = gateway.requests("CreateFineTuningJob")[0].spec
    assert (spec.base_model, spec.hyperparameters.learning_rate, spec.hyperparameters.num_epochs) == ("b", 5e-4, 1)
    assert not spec.HasField("system_prompt")
    assert list(gateway.uploads.values()) == [rows.read_bytes()]


def test_an_unset_variable_is_named_with_its_place(ftf: Ftf, tmp_path: Path) -> None:
    config = tmp_path / "job.toml"
    config.write_text('base_model = "a"\n\n[labels]\nteam = "${NOT_SET_ANYWHERE}"\n')
    result = ftf("train", "--config", config)
    assert result.exit_code == 2
    assert "labels.team: the environment variable NOT_SET_ANYWHERE is not set (job.toml, line 4)" in result.stderr


def test_an_unset_variable_is_named_with_each_of_its_places(ftf: Ftf, tmp_path: Path) -> None:
    """Both messages named the first line, and the second place had to be searched for."""
    config = tmp_path / "job.toml"
    config.write_text(
        '# Needs ${NOT_SET_ANYWHERE}.\nbase_model = "${NOT_SET_ANYWHERE}"\n\n'
        '[labels]\nteam = "${NOT_SET_ANYWHERE}-${NOT_SET_ANYWHERE}"\n'
    )
    said = ftf("train", "--config", config).stderr
    assert "base_model: the environment variable NOT_SET_ANYWHERE is not set (job.toml, line 2)" in said
    assert said.count("labels.team: the environment variable NOT_SET_ANYWHERE is not set (job.toml, line 5)") == 1


def test_a_file_in_another_encoding_is_named(ftf: Ftf, rows: Path, gateway: FakeGateway) -> None:
    """PowerShell's `>` writes UTF-16, and its Out-File a byte order mark before UTF-8, which is no part of the text."""
    text = f'base_model = "m"\ntraining_data = "{rows.name}"\ndisplay_name = "é"\n'
    config, template = rows.parent / "job.toml", rows.parent / "rows.jinja"
    config.write_bytes(text.encode("utf-16"))
    template.write_bytes('{"question": "é"}'.encode("latin-1"))
    for arguments, at_fault in (
        (("train", "--config", config, "--dry-run"), config),
        (("validate", "--config", config), config),
        (("estimate", "--config", config), config),
        (("recommend", "--config", config), config),
        (("validate", rows, "-m", "m", "--template", template), template),
        (("datasets", "stats", rows, "-m", "m", "--template", template), template),
    ):
        result = ftf(*arguments, "--json")
        assert result.exit_code == 2, result.output
        error = json.loads(result.stderr)["error"]
        assert error["reason"] == "NOT_UTF8"
        (violation,) = error["violations"]
        assert violation["field"] == at_fault.name
        assert "save it as UTF-8" in violation["description"]
    config.write_bytes(text.encode("utf-8-sig"))
    assert ftf("train", "--config", config, "--detach").exit_code == 0
    assert gateway.requests("CreateFineTuningJob")[0].spec.display_name == "é"


def test_a_job_file_that_no_parser_ends_with_is_refused(ftf: Ftf, tmp_path: Path) -> None:
    """By its name, as any other mistake in it."""
    config = tmp_path / "job.toml"
    for text in ("a = " + "[" * 100_000, ".".join("a" * 2_000) + " = 1", "seed = " + "9" * 10_000, "no toml"):
        config.write_text(text)
        result = ftf("validate", "--config", config, "--json")
        assert result.exit_code == 2, text[:20]
        (violation,) = json.loads(result.stderr)["error"]["violations"]
        assert violation["field"] == config.name


def test_lists_are_tab_separated_in_a_pipe(ftf: Ftf) -> None:
    header, row = ftf("jobs", "list").stdout.splitlines()
    assert header.split("\t")[:3] == ["ID", "STATE", "STAGE"]
    assert row.split("\t")[:2] == ["ftjob_0", "SUCCEEDED"]
    assert lines(ftf("jobs", "list", "--json").stdout)[0]["state"] == "JOB_STATE_SUCCEEDED"


def test_each_noun_answers_people_and_programs(ftf: Ftf, rows: Path) -> None:
    for command, expected in {
        "jobs get": "tuned 3.0000",
        "metrics": "loss\t1\t3.9",
        "jobs cancel": "CANCELLING",
    }.items():
        result = ftf(*command.split(), JOB)
        assert result.exit_code == 0, result.output
        assert expected in result.stdout
        assert lines(ftf(*command.split(), JOB, "--json").stdout)
    uploaded = ftf("datasets", "upload", rows)
    assert uploaded.stdout.startswith("ds_")
    for command, expected in {
        "datasets list": "train.jsonl\t1.5 KiB",
        "models list": "smollm2-135m\tBASE\t135 M",
        "recipes list": "cpu-demo\tsmall and quick",
        "recipes show cpu-demo": "[lora]\nr = 16",
        "probe": "GPU 0\tH200",
        "doctor": "ok      gateway        1 recipe,",
    }.items():
        result = ftf(*command.split())
        assert result.exit_code == 0, result.output
        assert expected in result.stdout
        assert lines(ftf(*command.split(), "--json").stdout)


def test_doctor_names_every_setting_of_the_environment(ftf: Ftf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that is set elsewhere is the commonest reason why a job is not where it is looked for."""
    monkeypatch.setenv("FTF_HOME", "/somewhere")
    monkeypatch.setenv("FTF_HUB_TOKEN", "a secret")
    said = ftf("doctor").stdout
    assert "FTF_HOME, FTF_HUB_TOKEN" in said
    assert "a secret" not in said


def test_download_prints_where_the_files_are(ftf: Ftf, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.files = {"export/report.md": b"# report"}
    result = ftf("download", JOB, "--out", tmp_path / "package")
    assert result.exit_code == 0
    assert str(tmp_path / "package" / "report.md") in result.stdout


def test_inspection_of_a_file_names_the_dataset_that_the_server_keeps(
    ftf: Ftf, rows: Path, gateway: FakeGateway
) -> None:
    """The rows stay on the server, which a command that only shows something does not suggest."""
    shown = ftf("datasets", "stats", rows, "-m", "m")
    assert list(gateway.uploads.values()) == [rows.read_bytes()]
    assert f"The server keeps {rows.name} as ds_" in " ".join(shown.stderr.split())
    assert "ftf datasets delete ds_" in " ".join(shown.stderr.split())
    assert ftf("datasets", "stats", rows, "-m", "m", "--json").stderr == ""


def test_delete_prints_the_id(ftf: Ftf, rows: Path) -> None:
    """A program that reads JSON got nothing at all."""
    for as_json in (False, True):
        dataset = json.loads(ftf("datasets", "upload", rows, "--json").stdout)["id"]
        deleted = ftf("datasets", "delete", dataset, *["--json"] * as_json).stdout
        assert deleted == (f'{{"deleted": "{dataset}"}}\n' if as_json else f"Deleted {dataset}\n")


def test_folder_for_a_package_is_made_before_the_export(ftf: Ftf, gateway: FakeGateway, tmp_path: Path) -> None:
    """A folder that cannot be created was reported after the whole export."""
    (tmp_path / "file").write_text("")
    result = ftf("export", JOB, "--out", tmp_path / "file" / "package")
    assert result.exit_code == 2
    assert "cannot be created" in " ".join(result.stderr.split())
    assert not gateway.requests("CreateExport")


def error_of(result: Result) -> dict[str, Any]:
    (line,) = result.stderr.splitlines()
    error: dict[str, Any] = json.loads(line)["error"]
    assert result.stdout == ""
    return error


@pytest.mark.parametrize("before", [("--json", "jobs", "get"), ("jobs", "--json", "get"), ("jobs", "get", "--json")])
def test_json_may_stand_before_the_command(ftf: Ftf, before: tuple[str, ...]) -> None:
    """People who type it first got a usage error, which did not say where it belongs."""
    assert json.loads(ftf(*before, JOB).stdout)["id"] == JOB
    assert error_of(ftf("--json", "jobs", "gett"))["code"] == "COMMAND_FAILED"


def test_errors_of_an_evaluation_name_the_options(ftf: Ftf, gateway: FakeGateway) -> None:
    """Nobody who typed --metric has written a field metrics[0]."""
    problem = "'rouge9' given; must be one of bleu, rouge1. See spec.graders."
    gateway.refusals["CreateEvaluation"] = lambda context: refuse(
        context,
        grpc.StatusCode.INVALID_ARGUMENT,
        f"spec.metrics[0]: {problem}",
        "INVALID_CONFIG",
        [
            ("spec.metrics[0]", problem),
            ("data[1].dataset", "there is no dataset 'ds_2'"),
            ("spec.max_rows", "is -1"),
        ],
    )
    said = ftf("evaluate", JOB, "--metric", "rouge9").stderr
    assert "--metric: 'rouge9' given; must be one of bleu, rouge1. See --graders." in said
    assert "--data: there is no dataset 'ds_2'" in said and "--max-rows: is -1" in said and "spec." not in said
    fields = [each["field"] for each in error_of(ftf("evaluate", JOB, "--metric", "rouge9", "--json"))["violations"]]
    assert fields == ["spec.metrics[0]", "data[1].dataset", "spec.max_rows"]
    gateway.refusals["CreateEvaluation"] = lambda context: refuse(
        context, grpc.StatusCode.INVALID_ARGUMENT, "against is 'x', the same model as 'x'.", "INVALID_MODEL"
    )
    assert "--against is 'x', the same model as 'x'." in ftf("evaluate", "x", "--against", "x").stderr


def test_unknown_format_of_an_export_names_the_option(ftf: Ftf) -> None:
    said = ftf("export", JOB, "--format", "blah").stderr
    assert "--format has an unknown value" in said and "--format: must be one of adapter" in said


def test_options_for_a_push_without_a_repository_are_named(ftf: Ftf, gateway: FakeGateway) -> None:
    said = ftf("export", JOB, "--public", "--token-secret", "hf").stderr
    assert "--public, --token-secret are about a push to the hub" in said and "--push NAMESPACE/NAME" in said
    assert not gateway.requests("CreateExport")


def test_recipe_is_checked_before_files_are_uploaded(ftf: Ftf, rows: Path, gateway: FakeGateway) -> None:
    """A misspelled name was refused after gigabytes had been sent."""
    gateway.refusals["GetRecipe"] = lambda context: refuse(
        context, grpc.StatusCode.NOT_FOUND, "There is no recipe 'cpudemo'. Did you mean cpu-demo?", "RECIPE_NOT_FOUND"
    )
    for option in ((), ("--dry-run",)):
        result = ftf("train", rows, "-m", "m", "--recipe", "cpudemo", *option)
        assert result.exit_code == 2 and "Did you mean cpu-demo?" in result.stderr
    assert not gateway.uploads and not gateway.requests("CreateFineTuningJob")


def test_after_json_an_error_is_an_object_too(ftf: Ftf, rows: Path, server: Running, gateway: FakeGateway) -> None:
    """A program that reads JSON must not have to read sentences where it matters most."""
    gateway.refusals["CreateFineTuningJob"] = lambda context: refuse(
        context, grpc.StatusCode.INVALID_ARGUMENT, "bad spec", "INVALID_CONFIG", [("spec.seed", "negative")]
    )
    error = error_of(ftf("train", "ds_1", "-m", "m", "--json"))
    assert error == {
        "code": "INVALID_ARGUMENT",
        "reason": "INVALID_CONFIG",
        "message": "bad spec",
        "advice": "",
        "violations": [{"field": "spec.seed", "description": "negative"}],
    }
    assert error_of(ftf("jobs", "get", "ftjob_nope", "--json"))["reason"] == "JOB_NOT_FOUND"
    assert "--nonsense" in error_of(ftf("train", rows, "--json", "--nonsense"))["message"]
    assert error_of(ftf("jobs", "get", "", "--json"))["code"] == "COMMAND_FAILED"
    server.stop()
    result = ftf("jobs", "list", "--json")
    assert (result.exit_code, error_of(result)["code"]) == (3, "UNAVAILABLE")
    assert "ftf up" in error_of(result)["advice"]


def test_a_training_reads_rows_as_validated(ftf: Ftf, rows: Path, gateway: FakeGateway, tmp_path: Path) -> None:
    """Rows that were looked at with a template, and held-out ones like them, are trained with it."""
    template = tmp_path / "rows.jinja"
    template.write_text('{"question": {{ row["Weight (kg)"] | tojson }}, "answer": "a"}')
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(rows.read_text())
    done = ftf("train", rows, "--eval", held_out, "-m", "m", "--template", template, "-d")
    assert done.exit_code == 0, done.output
    (request,) = gateway.requests("CreateFineTuningJob")
    for source in (*request.spec.training_data, *request.spec.evaluation_data):
        assert source.template == template.read_text()
        assert source.dataset.startswith("ds_")
    assert ftf("train", "-m", "m", "--template", template).exit_code == 2, "about which rows?"


def test_a_refused_training_says_what_became_of_the_file(ftf: Ftf, rows: Path, gateway: FakeGateway) -> None:
    """Otherwise a user who corrects and repeats a command would not know whether the upload was kept."""
    gateway.refusals["CreateFineTuningJob"] = lambda context: refuse(
        context, grpc.StatusCode.NOT_FOUND, "no such model", "MODEL_NOT_FOUND"
    )
    result = ftf("train", rows, "-m", "m")
    (dataset,) = gateway.uploads
    assert result.exit_code == 2
    assert f"train.jsonl as {dataset}" in result.stderr
    assert f"ftf datasets delete {dataset}" in result.stderr


def test_a_dry_run_speaks_of_the_file(ftf: Ftf, rows: Path, gateway: FakeGateway) -> None:
    """The dataset it was checked with is deleted again; who copies the output must not copy its id."""
    result = ftf("train", rows, "-m", "m", "--dry-run")
    assert f'dataset = "{rows}"' in result.stdout
    assert "ds_" not in result.stdout
    assert "ds_" not in ftf("train", rows, "-m", "m", "--dry-run", "--json").stdout


def test_a_refused_file_is_named(ftf: Ftf, rows: Path, gateway: FakeGateway) -> None:
    gateway.refusals["UploadDataset"] = lambda context: refuse(
        context,
        grpc.StatusCode.INVALID_ARGUMENT,
        "header.filename: bad",
        "BAD",
        [("header.filename", "a wrong ending")],
    )
    result = ftf("datasets", "upload", rows)
    assert result.stderr == "bad [BAD]\n  train.jsonl: a wrong ending\n"
    assert "header" not in result.stderr
    after = rows.parent / "after.jsonl"
    after.write_text("{}\n")
    result = ftf("datasets", "upload", rows, after)
    assert f"Not uploaded: {after}." in result.stderr


def test_a_list_says_that_there_is_more(ftf: Ftf, gateway: FakeGateway) -> None:
    """Twenty rows that end without a word look like all there is."""
    gateway.jobs = 30
    result = ftf("jobs", "list")
    assert len(result.stdout.splitlines()) == 21
    assert "--limit" in result.stderr
    assert len(lines(ftf("jobs", "list", "--json").stdout)) == 20
    result = ftf("jobs", "list", "--limit", 30)
    assert (len(result.stdout.splitlines()), result.stderr) == (31, "")


def test_an_empty_id_is_refused_here(ftf: Ftf, gateway: FakeGateway) -> None:
    """`ftf jobs get "$JOB"` where nothing set JOB."""
    for command in ("jobs get", "jobs cancel", "datasets get", "download", "metrics"):
        result = ftf(*command.split(), "")
        assert result.exit_code == 2
        assert "empty" in result.stderr
    assert gateway.calls == []


def test_failed_work_of_every_kind_is_exit_code_1() -> None:
    """A script retries other input after a failed job; exit code 2 would say that it called `ftf` wrongly."""
    job, export = Job.from_proto(job_pb.FineTuningJob(id=JOB)), Export.from_proto(export_pb2.Export(id="ex_1"))
    for ended in (JobFailed(job), JobCancelled(job), WorkFailed(export), WorkCancelled(export)):
        assert exit_code(ended) == 1


def test_the_exit_codes_are_in_the_help(ftf: Ftf) -> None:
    assert "3 no server is" in " ".join(ftf("--help").stdout.split())


def test_advice_is_what_the_caller_can_type(ftf: Ftf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ftf` is not found in a shell that has not activated the environment it lies in."""
    script = tmp_path / "venv" / "ftf"
    script.parent.mkdir()
    script.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    address = os.environ["FTF_ADDRESS"]
    assert f"\nDownload the package: venv/ftf download {JOB}\n" in ftf("jobs", "watch", JOB).stdout
    monkeypatch.setenv("PATH", str(script.parent))
    assert f"Download the package: ftf download {JOB}" in ftf("jobs", "watch", JOB).stdout
    monkeypatch.delenv("FTF_ADDRESS")
    shown = ftf("--address", address, "jobs", "watch", JOB).stdout
    assert f"Download the package: ftf --address {address} download {JOB}" in shown


def test_failed_export_shows_its_advice_and_last_output(ftf: Ftf, gateway: FakeGateway) -> None:
    """The traceback is what a bug report needs; that of an export is in no job."""
    gateway.failed_export = export_pb2.Export(
        id="ex_1",
        attempt=1,
        last_sequence=8,
        state=job_pb.JOB_STATE_FAILED,
        reason="CRASHED",
        message="The export is not tried again: exited with status 3",
        advice="Report a bug.",
    )
    shown = ftf("exports", "get", "ex_1").stdout
    assert "The export is not tried again" in shown and "Advice: Report a bug." in shown
    assert "Attempt 1 of export, CRASHED:\n  Last output:\n  | KeyError: 'x'\n" in shown


def poisoned() -> tuple[list[event_pb2.Event], list[job_pb.AttemptSummary]]:
    """A training that lost its worker twice, the second time after it went on from step 10."""
    events = history()[:15]
    failure = event_pb2.StageFailed(reason="KILLED", message="its worker was killed by SIGKILL", last_lines=["step 10"])
    end = event_pb2.StateChanged(
        state=job_pb.JOB_STATE_FAILED,
        stage=job_pb.STAGE_TRAINING,
        reason="POISON",
        message="The job is not tried again: 2 attempts failed: its worker was killed by SIGKILL",
        fault=job_pb.FAULT_SYSTEM_ERROR,
    )
    released = event_pb2.StageReleased(reason="DRAINED")
    restored = event_pb2.Restored(checkpoint_step=10, first_step=11)
    for attempt, payload in (
        (1, {"stage_failed": failure}),
        (2, {"restored": restored}),
        (2, {"stage_released": released}),
        (3, {"restored": restored}),
        (3, {"stage_failed": failure}),
        (3, {"state_changed": end}),
    ):
        event = event_pb2.Event(stage=job_pb.STAGE_TRAINING, attempt=attempt, job_id=JOB, **payload)
        event.sequence = len(events) + 1
        events.append(event)
    attempts = [
        job_pb.AttemptSummary(stage=1, attempt=1, state="ENDED", node_id="probe-1", outcome="COMPLETED"),
        *(
            job_pb.AttemptSummary(
                stage=2, attempt=n, state="ENDED", node_id="trainer-1", outcome=outcome, reason=reason, counted=counted
            )
            for n, outcome, reason, counted in (
                (1, "FAILED", "KILLED", True),
                (2, "RELEASED", "DRAINED", False),
                (3, "FAILED", "KILLED", True),
            )
        ),
    ]
    for attempt in attempts:
        attempt.claim_time.FromSeconds(1_700_000_000)
        attempt.end_time.FromSeconds(1_700_000_065)
    return events, attempts


def test_a_poison_job_is_explained_in_one_place(ftf: Ftf, gateway: FakeGateway) -> None:
    """Without each failure, its node and its number an operator cannot tell a bad job from a bad machine."""
    gateway.events, gateway.attempts = poisoned()
    explained = ftf("jobs", "explain", JOB).stdout
    assert "The job is not tried again: 2 attempts failed" in explained.splitlines()[0]
    rows = [line.split("\t") for line in explained.splitlines() if "\t" in line]
    assert rows == [
        ["STAGE", "ATTEMPT", "NODE", "OUTCOME", "REASON", "COUNTED", "DURATION"],
        ["preflight", "1", "probe-1", "COMPLETED", "", "", "1:05"],
        ["training", "1", "trainer-1", "FAILED", "KILLED", "yes", "1:05"],
        ["training", "2", "trainer-1", "RELEASED", "DRAINED", "", "1:05"],
        ["training", "3", "trainer-1", "FAILED", "KILLED", "yes", "1:05"],
    ]
    assert explained.count("its worker was killed") == 1
    assert rows[2] in [line.split("\t") for line in ftf("jobs", "get", JOB).stdout.splitlines()]
    (job, *_) = lines(ftf("jobs", "explain", JOB, "--json").stdout)
    assert [attempt["outcome"] for attempt in job["attempts"]] == ["COMPLETED", "FAILED", "RELEASED", "FAILED"]


def test_a_follower_reads_what_became_of_each_attempt(ftf: Ftf, gateway: FakeGateway) -> None:
    """The loss jumps back; without a word about it the curve looks broken."""
    gateway.events, _ = poisoned()
    followed = ftf("jobs", "watch", JOB).stdout
    assert "attempt 1 failed: KILLED: its worker was killed by SIGKILL" in followed
    assert "attempt 2 after KILLED: resumes from step 10" in followed
    assert "attempt 2 released: drained" in followed
    assert "attempt 3: resumes from step 10" in followed


def test_a_lost_connection_and_its_return_are_shown_once(ftf: Ftf, gateway: FakeGateway) -> None:
    gateway.cut_watch_after = [4]
    followed = ftf("jobs", "watch", JOB).stdout
    assert followed.count("The server does not answer") == 1
    assert followed.count("Reconnected") == 1


def test_values_of_a_harness_are_shown_beside_the_others(ftf: Ftf, gateway: FakeGateway) -> None:
    """Somebody who ran a known benchmark wants its values, and how sure they are."""
    metrics = [
        stage_result_pb2.HarnessMetric(
            task="sums",
            task_version="1.5",
            metric="exact_match",
            filter="strict",
            base=0.125,
            base_stderr=0.05,
            tuned=0.75,
            tuned_stderr=0.0625,
            higher_is_better=True,
            num_rows=200,
        ),
        stage_result_pb2.HarnessMetric(task="pages", metric="perplexity", base=20.0, num_rows=8),
    ]
    gateway.harness = stage_result_pb2.HarnessResult(version="0.4.13", limit=200, chat_template=True, metrics=metrics)

    for command in (("evaluations", "get", "ev_1"), ("jobs", "get", JOB)):
        shown = ftf(*command).stdout
        assert "lm-evaluation-harness 0.4.13, at most 200 rows a task, with chat template" in shown
        assert "sums\texact_match (strict)\t0.1250 ± 0.0500\t0.7500 ± 0.0625\t200\thigher\n" in shown
        assert "pages\tperplexity\t20.0000\tnot a number\t8\t\n" in shown
    printed = json.loads(ftf("evaluations", "get", "ev_1", "--json").stdout)
    assert printed["result"]["harness"]["metrics"][0]["tuned_stderr"] == 0.0625


def test_tasks_of_the_harness_are_listed_by_machine(ftf: Ftf, gateway: FakeGateway) -> None:
    """A user cannot know the names that an operator gave them."""
    gateway.harness_tasks = ["colours", "sums"]
    assert "Harness tasks\tcolours, sums\n" in ftf("probe").stdout


def test_tasks_of_the_harness_are_sent(ftf: Ftf, gateway: FakeGateway) -> None:
    """Otherwise nothing would measure what the user has asked for."""
    ftf("evaluate", JOB, "--harness-task", "sums", "--harness-task", "colours", "--harness-limit", "20", "--detach")
    request = gateway.requests("CreateEvaluation")[-1]
    assert list(request.spec.harness_tasks) == ["sums", "colours"] and request.spec.harness_limit == 20


def test_the_processes_on_one_machine_are_one_machine(ftf: Ftf, gateway: FakeGateway) -> None:
    """Four entries for one machine look like four times the memory."""
    gateway.nodes = ["trainer-one-0000", "trainer-two-ffff"]
    shown = ftf("probe").stdout
    assert shown.count("H200") == 2
    assert "NODES\tprobe-one-0a1b, trainer-one-0000\n" in shown
    assert len(lines(ftf("probe", "--json").stdout)) == 3
