import json
from pathlib import Path

import grpc
import pytest

from tests.cli.conftest import Ftf
from tests.sdk.fake_gateway import JOB, FakeGateway, Running, history, refuse


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
    assert explained.stdout.count("mend row 17") == 1
    assert "| ValueError: no answer" in explained.stdout


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
    assert "spec.lora.rank: unknown key" in result.stderr
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
        assert "ftf up" in result.output


def test_a_detached_and_a_dry_run(ftf: Ftf, rows: Path, gateway: FakeGateway) -> None:
    result = ftf("train", rows, "--model", "m", "--detach")
    assert result.exit_code == 0
    assert f"ftf jobs watch {JOB}" in result.stdout
    assert lines(ftf("train", rows, "-m", "m", "-d", "--json").stdout)[0]["id"] == JOB
    result = ftf("train", rows, "--model", "m", "--dry-run", "--set", "lora.r=32")
    assert result.exit_code == 0
    assert "[lora]\nr = 32" in result.stdout
    assert gateway.requests("CreateFineTuningJob")[-1].validate_only


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


def test_download_prints_where_the_files_are(ftf: Ftf, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.files = {"export/report.md": b"# report"}
    result = ftf("download", JOB, "--out", tmp_path / "package")
    assert result.exit_code == 0
    assert str(tmp_path / "package" / "report.md") in result.stdout
