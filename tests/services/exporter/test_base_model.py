"""Tests of the export of a base model, which no job has trained: its weights, its documents, and what is refused."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from engine.config.job import base_model_config
from engine.errors import JobError
from engine.inl_sizes import ARCHITECTURE, InlSize
from engine.model.random_weights import write_random_weights
from finetuneflow.package_check import check_package
from finetuneflow.v1.stage_result_pb2 import EvaluationResult, ExportResult, PreflightResult, TrainingResult
from services.child_input import ModelFiles
from services.exporter.worker import package, verify_gguf
from services.exporter.worker.__main__ import main
from services.exporter.worker.child_input import ExportInput, JobOrigin
from services.exporter.worker.package import ZIP
from tests.services.exporter.test_package import RecordingSink
from tests.tiny_models import CHATML, make_tiny_llama, make_tiny_tokenizer

DOCUMENTS = {"README.md", "manifest.json", "report.md", ZIP}
EXPORT = "ex_01"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model in bfloat16 but for one tensor, and with settings of its own for generations."""
    folder = make_tiny_llama(tmp_path_factory.mktemp("llama"))
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: each if "norm" in name else each.bfloat16() for name, each in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0], "temperature": 0.6, "do_sample": true}')
    return folder


def export(model: Path, tmp_path: Path, architecture: str = "", **settings: Any) -> tuple[ExportResult, Path]:
    config = base_model_config("tiny")
    config = config.model_copy(
        update={
            "method": "full",
            "display_name": "tiny",
            "export": config.export.model_copy(update=settings),
        }
    )
    given = ExportInput(
        config=config,
        model=ModelFiles(
            path=model,
            id="tiny",
            revision="r1",
            weights_sha256="0" * 64,
            license="MIT",
            architecture=architecture,
        ),
        adapter_dir=model,
        of_base=True,
        out_dir=tmp_path / "out",
        job=JobOrigin(id=EXPORT, create_time="2026-01-02T03:04:05Z"),
        preflight=PreflightResult(),
        training=TrainingResult(),
        evaluation=EvaluationResult(),
    )
    file = tmp_path / "input.json"
    file.write_text(given.model_dump_json())
    return main(RecordingSink(), file), given.out_dir


def test_merged_form_has_the_bits_of_the_base_model(llama: Path, tmp_path: Path) -> None:
    """Whoever serves it must serve the publisher's model, also where its weights have several formats."""
    result, out = export(llama, tmp_path, formats=["merged"])
    original, found = load_file(llama / "model.safetensors"), load_file(out / "merged" / "model.safetensors")
    assert original.keys() == found.keys()
    assert all(found[name].dtype == each.dtype and torch.equal(found[name], each) for name, each in original.items())
    for name in ("config.json", "generation_config.json"):
        assert json.loads((out / "merged" / name).read_text()) == json.loads((llama / name).read_text()), name
    tokenizer = AutoTokenizer.from_pretrained(out / "merged")
    assert tokenizer.chat_template == CHATML
    (form,) = result.forms
    assert (form.path, form.dtype, form.merge_base, form.num_rendered_rows) == ("merged", "bfloat16", "", 64)
    compared = form.comparison
    assert (compared.rows, compared.num_rows) == ("general", 64) and compared.num_positions > 640
    assert compared.mean_kl <= compared.max_mean_kl and compared.same_next_token > 0.9


def test_template_that_renders_other_tokens_is_not_published(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures of two models that both read the wrong tokens would agree."""
    write = package.write_tokenizer

    def changed(child_input: ExportInput, folder: Path) -> None:
        write(child_input, folder)
        (folder / "chat_template.jinja").write_text(
            CHATML.replace("message['content'] +", "message['content'] + ' ' +")
        )

    monkeypatch.setattr(package, "write_tokenizer", changed)
    with pytest.raises(JobError, match=r"General question 1 is rendered by merged/ to other tokens than by the base"):
        export(llama, tmp_path, formats=["merged"])
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]


def test_documents_name_the_model_and_claim_no_training(llama: Path, tmp_path: Path) -> None:
    """Figures of a training that never was, or a broken link to them, would be believed."""
    _, out = export(llama, tmp_path, formats=["merged"], dtype="float16")
    files = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert {name for name in files if not name.startswith("merged/")} == DOCUMENTS
    card, report = (out / "README.md").read_text(), (out / "report.md").read_text()
    assert (
        "The base model `tiny` (revision `r1`), exported by FineTuneFlow in export\n`ex_01`. It was not trained" in card
    )
    assert 'AutoModelForCausalLM.from_pretrained("merged", dtype="auto")' in card and "license: mit" in card
    assert "vllm serve ./merged" in card and "apply_chat_template" in card
    assert f"- SHA-256 of its weights: {'0' * 64}" in report and "- Merged: " in report and "float16" in report
    for absent in ("metrics.json", "training_config.json", "fine-tune of", "loss", " step "):
        assert absent not in card + report
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["job_id"], manifest["step"]) == (EXPORT, 0)
    checked = check_package(out / ZIP)
    assert checked.passed and checked.job_id == EXPORT and check_package(out).passed


@pytest.mark.long
def test_gguf_file_has_the_numbers_of_the_base_model(llama: Path, tmp_path: Path) -> None:
    """bfloat16 fits into float32 without rounding, so a number that differs is an error of ours."""
    result, out = export(llama, tmp_path, formats=["gguf"], gguf_types=["f32", "f16"])
    f32, f16 = result.forms
    assert [f32.gguf.file, f16.gguf.file] == ["gguf/tiny-f32.gguf", "gguf/tiny-f16.gguf"]
    original = load_file(llama / "model.safetensors")
    for form, dtype in ((f32, torch.float32), (f16, torch.float16)):
        tensors = {tensor.name: tensor for tensor in GGUFReader(out / form.gguf.file).tensors}
        for ours, theirs in (
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj.weight"),
        ):
            found = torch.from_numpy(tensors[ours].data.copy())
            assert torch.equal(found, original[theirs].to(dtype)), (form.dtype, ours)
        assert form.comparison.rows == "general" and form.comparison.mean_kl <= form.comparison.max_mean_kl
    assert (out / "gguf" / "Modelfile").read_text().startswith("FROM ./tiny-f32.gguf\n# FROM ./tiny-f16.gguf\nTEMPLATE")
    served = {each.reader: each.command or each.refusal for each in result.servable_by}
    assert served["llama.cpp"] == "llama-server -m gguf/tiny-f32.gguf"
    assert served["ollama"] == "ollama create tiny -f gguf/Modelfile && ollama run tiny"
    with zipfile.ZipFile(out / ZIP) as archive:
        assert "gguf/Modelfile" in archive.namelist()


@pytest.mark.long
def test_gguf_file_that_differs_is_compared_with_the_base_model(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads of a checkpoint looks for a training that never was."""
    monkeypatch.setattr(verify_gguf, "chat_template", lambda _: "another")
    with pytest.raises(JobError) as caught:
        export(llama, tmp_path, formats=["gguf"], gguf_types=["f16"])
    assert caught.value.message.startswith(
        "gguf/tiny-f16.gguf differs from the base model: its chat template is another one than that of the base model."
    )


@pytest.mark.long
def test_model_without_a_chat_template_gets_none(llama: Path, tmp_path: Path) -> None:
    """A template of ours would make others ask the model in a form that it has never read."""
    bare = tmp_path / "bare"
    shutil.copytree(llama, bare)
    (bare / "chat_template.jinja").unlink()
    result, out = export(bare, tmp_path, formats=["merged", "gguf"], gguf_types=["f16"])
    assert [form.comparison.rows for form in result.forms] == ["general", "general"]
    assert AutoTokenizer.from_pretrained(out / "merged").chat_template is None
    reader = GGUFReader(out / "gguf" / "tiny-f16.gguf")
    assert reader.get_field("tokenizer.chat_template") is None
    assert not (out / "gguf" / "Modelfile").exists() and "apply_chat_template" not in (out / "README.md").read_text()
    (ollama,) = [each for each in result.servable_by if each.reader == "ollama"]
    assert ollama.refusal == "the package has no Modelfile, because the base model has no chat template"


def test_model_that_cannot_be_converted_is_refused(llama: Path, tmp_path: Path) -> None:
    """A KeyError would read as an error of ours, and there is no adapter to advise instead."""
    quantized = tmp_path / "fp8"
    shutil.copytree(llama, quantized)
    tensors = load_file(quantized / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, quantized / "model.safetensors", {"format": "pt"})
    with pytest.raises(JobError) as caught:
        export(quantized, tmp_path, formats=["merged"])
    assert caught.value.reason == "MERGE_UNSUPPORTED"
    assert f"{name} in the number format F8_E4M3, which cannot be converted" in caught.value.message


@pytest.mark.long
def test_inl_model_is_exported_as_merged_only(tmp_path: Path) -> None:
    """It has weights like any other; llama.cpp has no such model."""
    base = make_tiny_tokenizer(tmp_path / "inl")
    (base / "config.json").write_text(json.dumps(InlSize(32, 2, 3, 512).config(384)))
    write_random_weights(base, 0)
    result, out = export(base, tmp_path, ARCHITECTURE, formats=["merged"])
    original, found = load_file(base / "model.safetensors"), load_file(out / "merged" / "model.safetensors")
    assert original.keys() == found.keys() and all(torch.equal(found[name], each) for name, each in original.items())
    assert result.forms[0].comparison.rows == "general"
    assert "\nregister_inl()\n" in (out / "README.md").read_text()
    with pytest.raises(JobError, match=r"llama\.cpp has no INL models"):
        export(base, tmp_path, ARCHITECTURE, formats=["gguf"], gguf_types=["f16"])
