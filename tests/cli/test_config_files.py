"""Job files in TOML, YAML and JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetuneflow.cli.config import apply_setting, read_config
from finetuneflow.setting_names import JOB_RULES, translate
from tests.cli.conftest import Ftf
from tests.fakes.gateway import FakeGateway

TEXTS = {
    "job.toml": 'model_name = "m"\ntraining_data = "rows.jsonl"\nlearning_rate = 1e-4\nsystem_prompt = "null"\n'
    '[labels]\nteam = "${TEAM}"\n[lora]\nr = 8\n',
    "job.yaml": "model_name: m\ntraining_data: rows.jsonl\nlearning_rate: 1e-4\nsystem_prompt: 'null'\n"
    "labels: {team: '${TEAM}'}\nlora:\n  r: 8\n",
    "job.json": '{"model_name": "m", "training_data": "rows.jsonl", "learning_rate": 1e-4, "system_prompt": "null", '
    '"labels": {"team": "${TEAM}"}, "lora": {"r": 8}}',
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n')
    return path


def violations(text: str) -> dict[str, str]:
    return {each["field"]: each["description"] for each in json.loads(text)["error"]["violations"]}


@pytest.mark.parametrize("name", TEXTS)
def test_one_job_in_three_formats(
    ftf: Ftf, rows: Path, gateway: FakeGateway, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM", "red")
    config = rows.parent / name
    config.write_text(TEXTS[name])
    result = ftf("train", "--config", config, "--detach")
    assert result.exit_code == 0, result.output
    assert "learning_rate = 0.0001 → hyperparameters.learning_rate = 0.0001" in result.stderr
    spec = gateway.requests("CreateFineTuningJob")[0].spec
    assert (spec.base_model, spec.hyperparameters.learning_rate, spec.lora.r) == ("m", 1e-4, 8)
    assert (dict(spec.labels), spec.HasField("system_prompt")) == ({"team": "red"}, False)
    assert list(gateway.uploads.values()) == [rows.read_bytes()]


def test_translations_are_in_the_report_and_in_its_json(ftf: Ftf, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misread name would otherwise train with another value, unseen."""
    config = rows.parent / "job.yml"
    config.write_text(
        "model_name: m\ntraining_data: rows.jsonl\nmax_seq_length: 2048\ngradient_checkpointing: unsloth\n"
    )
    for command in ("train", "validate"):
        arguments = (command, "--config", config, *(["--dry-run"] if command == "train" else []))
        result = ftf(*arguments)
        assert "max_seq_length = 2048 → hyperparameters.max_length = 2048" in result.stdout, result.output
        assert "not moved to main memory as Unsloth does" in result.stdout
        translations = json.loads(ftf(*arguments, "--json").stdout)["translations"]
        assert {
            "given": {"max_seq_length": 2048},
            "sets": {"hyperparameters.max_length": 2048},
            "note": "",
        } in translations


def test_a_flag_replaces_a_value_by_any_of_its_names(ftf: Ftf, rows: Path, gateway: FakeGateway) -> None:
    config = rows.parent / "job.toml"
    config.write_text('model_name = "a"\ntraining_data = "rows.jsonl"\nmax_seq_length = 64\n[lora]\nlora_r = 4\n')
    settings = ("hyperparameters.max_length=128", "r=8", "num_train_epochs=1", "hyperparameters.num_epochs=2")
    flags = [part for setting in settings for part in ("--set", setting)]
    result = ftf("train", "--config", config, "-m", "b", *flags, "-d")
    assert result.exit_code == 0, result.output
    spec = gateway.requests("CreateFineTuningJob")[0].spec
    assert (spec.base_model, spec.lora.r) == ("b", 8)
    assert (spec.hyperparameters.max_length, spec.hyperparameters.num_epochs) == (128, 2)


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("job.json", '{"seed": 1, "seed": 2}', "the key 'seed' is set twice"),
        ("job.yaml", "seed: 1\nseed: 2\n", "the key 'seed' is set twice"),
        ("job.yaml", "lora: [1, 2\n", "is not valid YAML"),
        ("job.yaml", "lora: !!python/object:os.system {}\n", "is not valid YAML"),
        ("job.json", "{", "is not valid JSON"),
        ("job.yaml", "- a\n", "must be a table"),
    ],
)
def test_a_file_that_cannot_be_read_names_the_mistake(
    ftf: Ftf, tmp_path: Path, name: str, text: str, problem: str
) -> None:
    config = tmp_path / name
    config.write_text(text)
    result = ftf("validate", "--config", config, "--json")
    assert result.exit_code == 2
    assert problem in violations(result.stderr)[name]


@pytest.mark.parametrize("value", ["$TEAM", "${ TEAM }", "${}"])
def test_misspelt_variable_does_not_become_the_value(ftf: Ftf, tmp_path: Path, value: str) -> None:
    config = tmp_path / "job.toml"
    config.write_text(f'base_model = "m"\n[labels]\nteam = "{value}"\n')
    result = ftf("validate", "--config", config, "--json")
    assert result.exit_code == 2
    assert "write ${NAME}" in violations(result.stderr)["labels.team"]


@pytest.mark.parametrize("variable", ["HF_TOKEN", "WANDB_API_KEY", "MINE"])
def test_secret_in_a_variable_stays_out_of_the_spec(
    ftf: Ftf, rows: Path, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """Specs are stored and shown to everyone in the tenant."""
    monkeypatch.setenv(variable, "hf_abcdefghijkl")
    config = rows.parent / "job.yaml"
    config.write_text("base_model: m\ntraining_data: rows.jsonl\nlabels: {key: '${" + variable + "}'}\n")
    result = ftf("train", "--config", config, "--json")
    assert result.exit_code == 2
    assert "secrets.hub_token" in violations(result.stderr)["labels.key"]
    assert "hf_abc" not in result.output
    assert not gateway.requests("CreateFineTuningJob")


def test_output_dir_gets_the_package(ftf: Ftf, rows: Path, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.files["export/report.md"] = b"# report"
    config, out = rows.parent / "job.json", tmp_path / "models" / "mine"
    config.write_text(json.dumps({"model_name": "m", "training_data": "rows.jsonl", "output_dir": str(out)}))
    result = ftf("train", "--config", config)
    assert result.exit_code == 0, result.output
    assert list(out.iterdir())
    assert f"--out {out}" in ftf("train", "--config", config, "--detach").stdout


@pytest.mark.parametrize(
    ("file", "setting", "path", "value"),
    [
        ("bf16 = false\nfp16 = false", "precision=bf16", "hyperparameters.precision", "bf16"),
        ("bf16 = false\nfp16 = false", "hyperparameters.precision=bf16", "hyperparameters.precision", "bf16"),
        ("load_in_4bit = false", "method=qlora", "method", "qlora"),
    ],
)
def test_set_replaces_a_field_that_several_names_of_the_file_decide(
    tmp_path: Path, file: str, setting: str, path: str, value: str
) -> None:
    (tmp_path / "job.toml").write_text(file)
    values = read_config(tmp_path / "job.toml")
    apply_setting(values, setting)
    found = translate(values, JOB_RULES)
    assert not found.conflicts and not found.lost
    section, _, name = path.rpartition(".")
    assert (found.values[section] if section else found.values)[name] == value


def test_set_accepts_a_list_of_objects_in_json(tmp_path: Path) -> None:
    """Graders are often copied from a program, as JSON."""
    values: dict[str, Any] = {}
    apply_setting(values, 'evaluation.gate=[{"metric": "loss", "min_gain": 0.1, "max_value": null}]')
    apply_setting(values, "system_prompt=[INST] be brief")
    assert values["evaluation"]["gate"] == [{"metric": "loss", "min_gain": 0.1, "max_value": None}]
    assert values["system_prompt"] == "[INST] be brief"
