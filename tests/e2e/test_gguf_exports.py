"""GGUF files through the whole system, where the converter runs in a confined child."""

from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file

from finetuneflow import Client
from tests.e2e.conftest import System
from tests.e2e.test_model_work import ftf

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def test_finished_job_is_exported_for_llama_cpp_and_ollama(
    system: System, client: Client, rows: Path, tmp_path: Path
) -> None:
    """Its files are what people run on their own machines, and the last lines of the command say how."""
    hyperparameters = {"max_steps": 4, "max_length": 64}
    created = client.jobs.create(base_model="tiny-llama", training_data=str(rows), hyperparameters=hyperparameters)
    job = client.jobs.wait(created.id).id
    out = tmp_path / "out"
    shown = ftf(system, "export", job, "--format", "gguf", "--quantization", "f16", "--out", str(out))
    (made, *_) = client.exports.list(job_id=job, limit=1)
    assert made.result is not None
    (form,) = made.result.forms
    assert form.gguf is not None and form.gguf.tensor_types == {"F16": 16, "F32": 5}
    assert form.comparison is not None and form.comparison.rows == "held_out"
    assert form.comparison.mean_kl <= (form.comparison.max_mean_kl or 0)
    assert f"GGUF        {form.gguf.file}, f16" in shown and "tensors: 16 F16, 5 F32" in shown
    assert f"llama-server -m {form.gguf.file}" in shown and "ollama create tiny-llama-tuned -f gguf/Modelfile" in shown
    reader = GGUFReader(out / form.gguf.file)
    assert len(reader.tensors) == 21
    assert (out / "gguf" / "Modelfile").read_text().startswith(f"FROM ./{Path(form.gguf.file).name}\nTEMPLATE")


def test_base_model_is_exported_and_its_package_verified(system: System, client: Client, tmp_path: Path) -> None:
    """The child is confined: it may read the model of this machine, and write its package only."""
    out = tmp_path / "out"
    shown = ftf(system, "export", "tiny-llama", "--format", "merged", "--format", "gguf", "--out", str(out))
    assert "Merged      merged/, float32" in shown and "mean KL to the base model 0 nats" in shown
    assert "GGUF        gguf/tiny-llama-q8_0.gguf, q8_0" in shown and "ollama create tiny-llama -f gguf/Model" in shown
    assert "compares it with the base model" in shown and "64 general conversations rendered to its tokens" in shown
    (made, *_) = client.exports.list(limit=1)
    assert (made.model, made.job_id, made.state) == ("tiny-llama", "", "SUCCEEDED") and made.result is not None
    assert [form.comparison.rows for form in made.result.forms if form.comparison] == ["general", "general"]
    original = load_file(system.home / "tiny-llama" / "model.safetensors")
    found = load_file(out / "merged" / "model.safetensors")
    assert original.keys() == found.keys()
    assert all(torch.equal(found[name], each) for name, each in original.items())
    assert not list(out.rglob("*metrics*")) and not list(out.rglob("training*"))
    key = system.home / "signing-key.pub.pem"
    checked = ftf(system, "verify", str(out), "--key", str(key))
    assert f"Export {made.id}." in checked and "The package is what its manifest says." in checked
    listed, told = ftf(system, "exports", "list"), ftf(system, "exports", "get", made.id)
    assert made.id in listed and "Model       tiny-llama\n" in told and "Made by" not in told
    ftf(system, "exports", "download", made.id, str(tmp_path / "again"), "--form", "gguf")
    assert sorted(file.name for file in (tmp_path / "again").rglob("*") if file.is_file()) == [
        "Modelfile",
        "tiny-llama-q8_0.gguf",
    ]
    refused = ftf(system, "export", "tiny-llama", "--format", "gguf_adapter", code=2)
    assert not refused
    ftf(system, "exports", "delete", made.id)


def test_finished_job_is_exported_as_an_adapter_in_gguf(
    system: System, client: Client, rows: Path, tmp_path: Path
) -> None:
    """The converter of adapters runs in the same confined child, which may write nowhere else."""
    hyperparameters = {"max_steps": 4, "max_length": 64}
    created = client.jobs.create(
        base_model="tiny-llama",
        training_data=str(rows),
        hyperparameters=hyperparameters,
        lora={"use_rslora": True},
        export={"formats": ["gguf_adapter"]},
    )
    job = client.jobs.wait(created.id)
    (made,) = client.exports.list(job_id=job.id, limit=1)
    assert made.result is not None
    (form,) = made.result.forms
    assert form.gguf is not None and form.gguf.file == "gguf_adapter/tiny-llama-tuned-lora-f16.gguf"
    assert form.comparison is not None and form.comparison.rows == "held_out"
    assert form.comparison.mean_kl <= (form.comparison.max_mean_kl or 0)
    out = tmp_path / "out"
    shown = ftf(system, "export", job.id, "--format", "gguf_adapter", "--quantization", "f32", "--out", str(out))
    assert "GGUF LoRA   gguf_adapter/tiny-llama-tuned-lora-f32.gguf, f32" in shown
    assert "llama-server -m BASE.gguf --lora gguf_adapter/tiny-llama-tuned-lora-f32.gguf" in shown
    alpha = GGUFReader(out / "gguf_adapter" / "tiny-llama-tuned-lora-f32.gguf").get_field("adapter.lora.alpha")
    assert alpha is not None and alpha.contents() == 32 * 16**0.5
