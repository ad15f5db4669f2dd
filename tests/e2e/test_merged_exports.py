"""Merged models through the whole system: the export stage of a job, and an export asked for alone."""

import json
import zipfile
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetuneflow import Client, InvalidArgument
from finetuneflow.resources import ExportedForm, ExportFormat
from finetuneflow.resources.job import Job
from tests.e2e.conftest import System
from tests.e2e.test_model_work import ftf

pytestmark = pytest.mark.long

IDS = torch.arange(5, 45)[None]


@pytest.fixture(scope="module")
def merged_job(system: System, rows: Path) -> Job:
    hyperparameters = {"num_epochs": 1, "max_length": 64, "learning_rate": 1e-2}
    with Client(system.address) as client:
        job = client.jobs.create(
            base_model="tiny",
            training_data=str(rows),
            method="lora",
            hyperparameters=hyperparameters,
            export={"formats": ["adapter", "merged"]},
        )
        return client.jobs.wait(job.id)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits.float()
    return found


def only(forms: tuple[ExportedForm, ...]) -> ExportedForm:
    (form,) = forms
    return form


def test_job_exports_its_adapter_and_the_merged_model(
    system: System, client: Client, merged_job: Job, tmp_path: Path
) -> None:
    """What is downloaded must load without us and be the model that was trained."""
    assert (merged_job.state, merged_job.reason) == ("SUCCEEDED", "COMPLETED")
    paths = client.jobs.download(merged_job.id, tmp_path)
    names = {path.relative_to(tmp_path).as_posix() for path in paths}
    assert {"adapter_model.safetensors", "merged/model.safetensors", "merged/tokenizer.json"} <= names
    with zipfile.ZipFile(tmp_path / "finetuneflow_export.zip") as archive:
        assert set(archive.namelist()) == names - {"finetuneflow_export.zip"}
    base = AutoModelForCausalLM.from_pretrained(system.home / "tiny-model")
    trained = PeftModel.from_pretrained(base, tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged), logits(trained), atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    exported = client.exports.get(merged_job.export_id)
    assert exported.result is not None
    assert [form.format for form in exported.result.forms] == [ExportFormat.ADAPTER, ExportFormat.MERGED]
    found = exported.result.forms[1].comparison
    assert found is not None and found.rows == "held_out" and found.num_rows > 0
    assert found.max_difference <= (found.max_max_difference or 0)


def test_merged_model_of_a_finished_job_is_exported_alone(
    system: System, client: Client, merged_job: Job, tmp_path: Path
) -> None:
    """People decide what to serve after the training; they must not train again for another form."""
    shown = ftf(
        system, "export", merged_job.id, "--format", "merged", "--dtype", "bfloat16", "--out", str(tmp_path / "out")
    )
    assert "Merged      merged/, bfloat16" in shown and "mean KL to the checkpoint" in shown
    (made, *_) = client.exports.list(job_id=merged_job.id, limit=1)
    assert made.formats == (ExportFormat.MERGED,) and made.result is not None
    form = only(made.result.forms)
    assert (form.path, form.dtype, form.merge_base) == ("merged", "bfloat16", "")
    assert form.comparison is not None and form.comparison.mean_kl <= (form.comparison.max_mean_kl or 0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged", dtype="auto")
    assert model.dtype == torch.bfloat16
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()
    listed = json.loads((tmp_path / "out" / "manifest.json").read_text())["files"]
    assert "merged/model.safetensors" in {each["path"] for each in listed}
    with pytest.raises(InvalidArgument, match="no running exporter can make GGUF files of type q4_k_m"):
        client.exports.create(merged_job.id, formats=["gguf"], gguf_types=["q4_k_m"])


def test_exported_package_is_signed_and_served_as_it_says(
    system: System, client: Client, merged_job: Job, tmp_path: Path
) -> None:
    """Who gets a package from a colleague has to know that it is the one of this server, and how to serve it."""
    exported = client.exports.get(merged_job.export_id)
    assert exported.result is not None and exported.result.signing_key_fingerprint
    assert all(form.num_rendered_rows > 0 for form in exported.result.forms)
    served = {(each.reader, each.format): each for each in exported.result.servable_by}
    assert served["vllm", ExportFormat.MERGED].command == "vllm serve ./merged" and served["ollama", None].refusal
    assert "vllm serve ./merged" in ftf(system, "exports", "get", merged_job.export_id)

    ftf(system, "exports", "download", merged_job.export_id, str(tmp_path / "all"))
    key = system.home / "signing-key.pub.pem"
    said = ftf(system, "verify", str(tmp_path / "all"), "--key", str(key))
    assert f"Signed by the key {exported.result.signing_key_fingerprint}" in said
    (tmp_path / "all" / "merged" / "config.json").write_text("{}")
    said = ftf(system, "verify", str(tmp_path / "all"), "--key", str(key), code=1)
    assert "merged/config.json" in said and "NOT what was exported" in said
    ftf(system, "exports", "download", merged_job.export_id, str(tmp_path / "one"), "--form", "merged")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["merged"]
    with pytest.raises(InvalidArgument, match="has no form gguf"):
        client.exports.download(merged_job.export_id, tmp_path, forms=["gguf"])


def test_path_of_a_tuned_model_is_a_local_copy(system: System, client: Client, merged_job: Job, tmp_path: Path) -> None:
    """A program that loads a folder must not wait for a person to export and download one."""
    before = len(list(client.exports.list(job_id=merged_job.id)))
    arguments = ("models", "path", f"ft:{merged_job.id}", "--home", str(tmp_path))
    path = Path(ftf(system, *arguments).strip())
    assert path.is_relative_to(tmp_path) and AutoModelForCausalLM.from_pretrained(path) is not None
    assert Path(ftf(system, *arguments).strip()) == path
    assert len(list(client.exports.list(job_id=merged_job.id))) == before, "the job's own export has the form"
    other = client.exports.wait(client.exports.create(merged_job.id, formats=["merged"], dtype="float16").id)
    assert other.id not in ftf(system, *arguments), "a newer export with other settings is another model"
