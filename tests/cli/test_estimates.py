"""`ftf recommend` and `ftf estimate`, with a server and without."""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from finetuneflow.cli import server_commands
from finetuneflow.cli.app import build_app
from tests.cli.conftest import Ftf
from tests.fakes.gateway import FakeGateway, Running, refuse


def test_a_recommendation_says_what_to_change(ftf: Ftf) -> None:
    shown = ftf("recommend", "--model", "llama-3.1-8b").stdout
    assert shown.startswith("llama-3.1-8b on H200: QLoRA, tight\n")
    assert "hyperparameters.max_length\t2048\t1024" in shown
    assert "at most\t7.50 GiB" in shown
    assert "Warning: Rows longer" in shown
    assert "LoRA, 8.3 GB. By size." in shown
    answer = json.loads(ftf("recommend", "-m", "llama-3.1-8b", "--json").stdout)
    assert answer["recommendation"]["method"] == "TRAINING_METHOD_QLORA"


def test_the_matrix_shows_where_it_differs(ftf: Ftf) -> None:
    shown = ftf("recommend", "--matrix").stdout
    assert "8-12 GiB\t❌ (QLoRA ⚠️)" in shown
    assert "8-12 GiB\t7-8B\tQLoRA needs 11.1 GiB free; 8 are." in shown
    assert "24-48 GiB\tQLoRA ✅\n" in shown


def test_an_estimate_has_memory_time_and_money(ftf: Ftf) -> None:
    shown = ftf("estimate", "-m", "llama-3.1-8b", "--examples", "10").stdout
    assert "Time\t1:00:00 (30:00 to 2:00:00) for 1,000 tokens" in shown
    assert "0.30 USD" in shown
    assert "unknown: name files" in ftf("estimate", "-m", "llama-3.1-8b").stdout


def test_what_is_missing_is_said(ftf: Ftf, tmp_path: Path) -> None:
    assert ftf("recommend").exit_code == 2
    assert ftf("estimate").exit_code == 2
    assert "bad" in ftf("estimate", "-m", "m", "--set", "lora.bad=1").stderr


def test_without_the_servers_package_nothing_is_answered_here(ftf: Ftf, tmp_path: Path) -> None:
    """`--local` and files to count then say what to install."""
    data = tmp_path / "rows.jsonl"
    data.write_text("{}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_commands, "entry_points", lambda group: [])
        for arguments in (["recommend", "-m", "m", "--local"], ["estimate", data, "-m", "m"]):
            done = ftf(*arguments)
            assert done.exit_code == 2
            assert "server's package" in done.stderr


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """`ftf` on a machine without a server."""
    monkeypatch.setenv("FTF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FTF_ADDRESS", raising=False)
    return lambda *arguments: CliRunner().invoke(build_app(), list(map(str, arguments)))


def test_a_tight_estimate_says_with_which_changes_it_fits(here: Any) -> None:
    """`tight` alone leaves a caller to guess; and rows that are cut are not estimated in silence."""
    tight = ("estimate", "-m", "llama-3.1-8b", "--set", "method=qlora", "--vram", "16", "--longest-row", "4000")
    tight += ("--set", "hyperparameters.per_device_train_batch_size=4")
    shown = here(*tight).stdout
    assert "hyperparameters.per_device_train_batch_size\t4\t" in shown
    assert "Warning: Rows longer than max_length = 2,048 tokens are truncated" in shown
    estimate = json.loads(here(*tight, "--set", "hyperparameters.max_length=200000", "--json").stdout)["estimate"]
    assert estimate["verdict"] == "FIT_VERDICT_TIGHT"
    rows = "hyperparameters.per_device_train_batch_size"
    assert {"field": rows, "before": "4", "after": "1"} in estimate["changes"]
    assert estimate["warnings"] == [
        "max_length = 200,000 exceeds the model's context length; the estimate uses 131,072, as a training would."
    ]


def test_everything_wrong_with_a_job_is_said_at_once(here: Any, tmp_path: Path) -> None:
    """Unknown names are the client's to see, ranges and recipes the engine's; one by one they cost a look each."""
    job = tmp_path / "job.toml"
    job.write_text(
        'base_model = "smollm2-135m"\ntraining_data = "rows.jsonl"\nrecipe = "defalt"\nbogus = 1\n'
        "[lora]\nr = 0\n[hyperparameters]\nlearnin_rate = 3\n"
    )
    (tmp_path / "rows.jsonl").write_text("{}\n")
    for command in ("validate", "estimate"):
        done = here(command, "--config", job, "--json")
        assert done.exit_code == 2
        fields = {violation["field"] for violation in json.loads(done.stderr)["error"]["violations"]}
        assert fields == {"spec.bogus", "spec.hyperparameters.learnin_rate", "spec.lora.r", "spec.recipe"}


def test_the_argument_at_fault_is_named_for_programs(here: Any) -> None:
    """One code for every wrong usage tells a program nothing that it could point at."""
    for arguments, field in (
        (("estimate", "-m", "m", "--vram", "0"), "--vram"),
        (("estimate", "-m", "m", "--gpu", "L4"), "--gpu"),
        (("estimate", "--no-such"), "--no-such"),
        (("estimate",), "--model"),
        (("estimate", __file__, "-m", "m", "--examples", 3), "--examples"),
        (("estimate", "-m", "m", "--map", "question=q"), "DATA"),
        (("estimate", "-m", "m", "--local", "--mean-tokens", 500, "--longest-row", 100), "mean_tokens"),
        (("recommend", "-m", "m", "--local", "--node", "n"), "--node"),
        (("jobs", "get"), "job_id"),
    ):
        done = here(*arguments, "--json")
        assert [violation["field"] for violation in json.loads(done.stderr)["error"]["violations"]] == [field]


def test_a_machine_of_the_servers_is_not_answered_for_here(here: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of this machine would be taken for that node's."""
    monkeypatch.setattr("finetuneflow.connection.DEFAULT_ADDRESS", "127.0.0.1:9")
    done = here("recommend", "-m", "smollm2-135m", "--node", "nope")
    assert (done.exit_code, done.stdout) == (3, "")
    assert "--node nope" in done.stderr


def test_a_server_that_refuses_is_not_replaced(
    here: Any, gateway: FakeGateway, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that the server cannot reach does not mean that no server is up."""
    gateway.refusals["RecommendMethod"] = lambda context: refuse(
        context, grpc.StatusCode.UNAVAILABLE, "The hub is away.", "HUB_UNREACHABLE", []
    )
    monkeypatch.setattr("finetuneflow.connection.DEFAULT_ADDRESS", server.address)
    done = here("recommend", "-m", "smollm2-135m", "--json")
    assert (done.exit_code, done.stdout) == (3, "")
    assert json.loads(done.stderr)["error"]["reason"] == "HUB_UNREACHABLE"


def test_a_number_beyond_any_field_is_wrong_usage(here: Any, tmp_path: Path) -> None:
    """A traceback and exit code 1 say that the server failed, and a program finds no object to read."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    for arguments in (
        ("estimate", "-m", "m", "--longest-row", 9 * 10**12),
        ("estimate", "-m", "m", "--examples", 10**23),
        ("estimate", "-m", "m", "--examples", 100, "--mean-tokens", "inf"),
        ("estimate", "-m", "m", "--examples", 100, "--mean-tokens", "1e300"),
        ("estimate", "-m", "m", "--vram", "inf"),
        ("estimate", "-m", "m", "--vram", "nan"),
        ("recommend", "-m", "m", "--vram", "1e30"),
        ("recommend", "-m", "m", "--longest-row", 10**10),
        ("validate", rows, "-m", "m", "--max-length", 10**11),
        ("datasets", "preview", rows, "-m", "m", "--max-length", 10**11),
        ("datasets", "preview", rows, "-m", "m", "--row", 10**23),
        ("jobs", "list", "--limit", 10**23),
        ("jobs", "watch", "job_1", "--after", 10**23),
        ("metrics", "job_1", "--points", 10**10),
    ):
        done = here(*arguments, "--json")
        assert done.exit_code == 2, arguments
        (violation,) = json.loads(done.stderr)["error"]["violations"]
        assert violation["field"] == arguments[-2]


def test_a_machine_without_a_server_answers_for_itself(here: Any, tmp_path: Path) -> None:
    """A model in the operator's folder, rows in a file: tokens are counted with the model's own tokenizer."""
    from tests.tiny_models import make_tiny_model

    model = make_tiny_model(tmp_path / "model")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"question": f"What is {n}?", "answer": f"It is {n}."}) + "\n" for n in range(20))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTF_PROBE_MODELS", json.dumps({"tiny": str(model)}))
        done = here("estimate", rows, "-m", "tiny", "--local", "--json")
        assert done.exit_code == 0, done.output
        estimate = json.loads(done.stdout)["estimate"]
        assert 3 * 18 * 10 < int(estimate["num_tokens"]) < 3 * 18 * 60
        assert float(estimate["duration_seconds"]) > 0
        table, template = tmp_path / "gym.csv", tmp_path / "rows.jinja"
        table.write_text("Weight (kg),workout\n61.5,squats\n80,a walk\n")
        template.write_text('{"question": "At {{ row["Weight (kg)"] }} kg?", "answer": {{ workout | tojson }}}')
        done = here("estimate", table, "-m", "tiny", "--local", "--json", "--template", template)
        assert done.exit_code == 0, done.output
        assert 3 * 2 * 5 < int(json.loads(done.stdout)["estimate"]["num_tokens"]) < 3 * 2 * 60
        done = here("recommend", "-m", "tiny", "--local", "--json")
        assert json.loads(done.stdout)["recommendation"]["method"] == "TRAINING_METHOD_LORA"
    done = here("recommend", "-m", "no-such-model", "--local", "--json")
    assert done.exit_code == 2
    assert json.loads(done.stderr)["error"]["reason"] == "MODEL_NOT_FOUND"
