"""GGUF files through the whole system, where the converter runs in a confined child."""

from pathlib import Path

import pytest
from gguf import GGUFReader

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
    assert f"llama-server -m {form.gguf.file}" in shown and "ollama create tuned -f gguf/Modelfile" in shown
    reader = GGUFReader(out / form.gguf.file)
    assert len(reader.tensors) == 21
    assert (out / "gguf" / "Modelfile").read_text().startswith(f"FROM ./{Path(form.gguf.file).name}\nTEMPLATE")


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
