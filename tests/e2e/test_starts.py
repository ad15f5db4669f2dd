"""Training a tuned model further, from the command line and the SDK to the package."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from finetuneflow import Client, FailedPrecondition, InvalidArgument, NotFound
from finetuneflow.resources import Job
from tests.e2e.conftest import System, unpacked_package

SHORT = {"max_steps": 6, "save_steps": 3, "eval_steps": 3, "logging_steps": 1, "max_length": 64, "learning_rate": 1e-2}


def held_out_loss(client: Client, job: Job) -> float:
    result = client.evaluations.get(job.evaluation_id).result
    assert result is not None and result.tuned_loss is not None
    return result.tuned_loss


@pytest.mark.long
def test_tuned_model_is_trained_further_and_again(system: System, client: Client, rows: Path, tmp_path: Path) -> None:
    """The whole chain: a first adapter, the same one further, a new one on top, and a package that any reader loads."""
    data = client.datasets.upload(str(rows)).id
    settings: dict[str, Any] = {"training_data": data, "hyperparameters": SHORT}
    first = client.jobs.wait(client.jobs.create(base_model="tiny", lora={"r": 4}, **settings).id)

    command = [
        sys.executable,
        "-m",
        "finetuneflow.cli",
        "train",
        data,
        "--model",
        first.tuned_model,
        "--detach",
        "--json",
    ]
    for name, value in SHORT.items():
        command += ["--set", f"hyperparameters.{name}={value}"]
    done = subprocess.run(command, env=system.environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    created = json.loads(done.stdout)["id"]
    with pytest.raises(FailedPrecondition, match="starts from the adapter"):
        client.jobs.delete(first.id)
    second = client.jobs.wait(created)
    assert second.resolved_spec["base_model"] == "tiny"
    assert second.resolved_spec["lora"]["r"] == 4
    assert second.resolved_spec["start_from"] == f"{first.tuned_model}@{first.training and first.training.best_step}"
    assert "start_from" in {resolution.field for resolution in second.resolutions}
    assert held_out_loss(client, second) < held_out_loss(client, first)

    dry = client.jobs.preflight(spec={**settings, "base_model": f"{second.tuned_model}@3"})
    assert dry.resolved_spec["start_from"] == f"{second.tuned_model}@3"
    split_again = client.jobs.preflight(spec={**settings, "base_model": second.tuned_model, "seed": 99})
    leaked = [
        "EVALUATION_LEAKED" in {finding.reason for finding in each.report.findings} for each in (dry, split_again)
    ]
    assert leaked == [False, True]
    third = client.jobs.create(start_from=f"{second.tuned_model}@3", start_mode="new", lora={"r": 2}, **settings)
    third = client.jobs.wait(third.id)
    assert [(each.start_from, each.start_mode) for each in third.lineage] == [
        (f"{second.tuned_model}@3", "NEW"),
        (second.resolved_spec["start_from"], "CONTINUE"),
    ]
    client.jobs.delete(first.id)
    with pytest.raises(NotFound):
        client.jobs.create(start_from=first.tuned_model, **settings)

    folder = unpacked_package(client, third.id, tmp_path)
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 6
    lineage = json.loads((folder / "training_metadata.json").read_text())["lineage"]
    assert [each["start_from"] for each in lineage] == [each.start_from for each in third.lineage]
    for file in ("README.md", "report.md"):
        text = (folder / file).read_text()
        assert f"a new adapter on top of `{second.tuned_model}@3`, itself further training of" in text
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(system.home / "tiny-model"), folder)
    with torch.inference_mode():
        assert torch.isfinite(model(input_ids=torch.arange(5, 40)[None]).logits).all()
    shown = subprocess.run(
        [sys.executable, "-m", "finetuneflow.cli", "jobs", "get", third.id],
        env=system.environment, capture_output=True, text=True, timeout=60,
    ).stdout  # fmt: skip
    assert f"Starts from {second.tuned_model}@3 (new), which started from {first.tuned_model}@" in shown


@pytest.mark.long
def test_adapter_made_elsewhere_is_trained_further(system: System, client: Client, rows: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(system.home / "tiny-model")
    config = LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"])
    get_peft_model(base, config).save_pretrained(tmp_path / "mine")
    command = [sys.executable, "-m", "finetuneflow.cli", "datasets", "upload-adapter", str(tmp_path / "mine"), "--json"]
    done = subprocess.run(command, env=system.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    uploaded = json.loads(done.stdout)["id"]
    assert client.datasets.upload_adapter(tmp_path / "mine").id == uploaded

    settings: dict[str, Any] = {"base_model": "tiny", "training_data": str(rows), "hyperparameters": SHORT}
    job = client.jobs.wait(client.jobs.create(start_from=uploaded, **settings).id)
    assert (job.resolved_spec["start_from"], job.resolved_spec["lora"]["r"]) == (uploaded, 3)
    folder = unpacked_package(client, job.id, tmp_path / "out")
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 3
    metadata = json.loads((folder / "training_metadata.json").read_text())
    assert [each["start_from"] for each in metadata["lineage"]] == [uploaded]
    assert uploaded not in [each["id"] for each in metadata["datasets"]]
    dry = client.jobs.preflight(spec={**settings, "start_from": uploaded})
    assert dry.resolved_spec["lora"]["r"] == 3
    other = client.jobs.preflight(spec={**settings, "start_from": uploaded, "base_model": "smollm2-135m"})
    assert [finding.reason for finding in other.report.findings][:1] == ["ADAPTER_MISMATCH"]
    with pytest.raises(InvalidArgument, match="is an adapter"):
        client.jobs.create(**{**settings, "training_data": uploaded})
    client.datasets.delete(uploaded)
