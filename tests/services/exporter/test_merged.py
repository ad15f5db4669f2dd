"""Tests of the merged form: what it contains, that it is the trained model, and what is refused."""

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.config.job import Lora, Quantization
from engine.data.block_tokenizer import TokenRows
from engine.data.shards import ShardWriter
from engine.errors import JobError
from engine.model import load
from engine.model.adapter import attach_lora
from engine.model.merge import merge
from finetuneflow.v1.event_pb2 import ArtifactSaved, Warning
from finetuneflow.v1.stage_result_pb2 import ExportResult
from services.exporter.worker import merged as merged_form
from services.exporter.worker import package
from services.exporter.worker.__main__ import main
from services.exporter.worker.child_input import ExportInput
from tests.services.exporter.conftest import random_adapter, resolved
from tests.services.exporter.test_package import FILES, RecordingSink
from tests.tiny_models import make_tiny_model

MERGED = {
    f"merged/{name}"
    for name in (
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    )
}
IDS = torch.arange(5, 45)[None]


def export(given: ExportInput, tmp_path: Path, sink: RecordingSink | None = None, **changes: Any) -> ExportResult:
    file = tmp_path / "input.json"
    file.write_text(given.model_copy(update=changes).model_dump_json())
    return main(sink or RecordingSink(), file)


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits.float()
    return found


def model_of(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, **options)


def quantised_adapter(base: Path, folder: Path, quantization: Quantization) -> Path:
    """A checkpoint that was trained on the quantised base model for a few steps."""
    torch.manual_seed(1)
    model = load.load_base(base, dtype=torch.float32, on="cpu", quantization=quantization)
    adapted = attach_lora(
        model, Lora(r=4, lora_alpha=8.0), model_dir=base, base_id="tiny", revision="r1", quantised=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    adapted.train()
    optimizer = torch.optim.SGD([each for each in adapted.parameters() if each.requires_grad], lr=0.5)
    for _ in range(3):
        adapted(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(str(folder))
    return folder


def test_package_contains_both_forms(export_input: ExportInput, tuned: SimpleNamespace, tmp_path: Path) -> None:
    """A file that is not published, or not in the zip, makes a model that does not load where it is served."""
    sink = RecordingSink()
    result = export(export_input, tmp_path, sink, config=resolved(export={"formats": ["adapter", "merged"]}))

    out = export_input.out_dir
    saved = {event.path: event for event in sink.said if isinstance(event, ArtifactSaved)}
    assert set(saved) == FILES | MERGED | {package.ZIP}
    assert all((out / name).stat().st_size == event.size_bytes for name, event in saved.items())
    assert {event.kind for name, event in saved.items() if name != package.ZIP} == {"export_file"}
    with zipfile.ZipFile(out / package.ZIP) as archive:
        assert set(archive.namelist()) == FILES | MERGED
        weights = archive.getinfo("merged/model.safetensors")
        assert weights.compress_type == zipfile.ZIP_STORED
        manifest = {each["path"]: each["sha256"] for each in json.loads(archive.read("manifest.json"))["files"]}
    assert set(manifest) == (FILES | MERGED) - {"manifest.json"}
    assert all(saved[name].sha256 == sha256 for name, sha256 in manifest.items())

    trained = PeftModel.from_pretrained(model_of(tuned.base), tuned.adapter).merge_and_unload()
    assert torch.equal(logits(model_of(out / "merged")), logits(trained))
    tokenizer = AutoTokenizer.from_pretrained(out / "merged")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(out).chat_template is not None
    adapter, merged = result.forms
    assert (adapter.format, adapter.path, adapter.dtype) == (1, "", "float32")
    assert (merged.format, merged.path, merged.dtype, merged.merge_base) == (2, "merged", "float32", "")
    assert merged.size_bytes == saved["merged/model.safetensors"].size_bytes
    assert adapter.comparison.max_difference <= adapter.comparison.max_max_difference == pytest.approx(1e-5)
    assert merged.comparison.max_difference <= merged.comparison.max_max_difference == pytest.approx(1e-3)
    assert (merged.comparison.same_next_token, merged.comparison.rows, merged.comparison.num_rows) == (1, "sentence", 1)


def test_merged_form_alone_says_how_to_load_it(export_input: ExportInput, tmp_path: Path) -> None:
    """Its README is all that the person who serves it has."""
    result = export(export_input, tmp_path, config=resolved(export={"formats": ["merged"], "dtype": "bfloat16"}))
    out = export_input.out_dir
    found = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    tokenizer = {"chat_template.jinja", "generation_config.json", "special_tokens_map.json"}
    tokenizer |= {"tokenizer.json", "tokenizer_config.json"}
    assert found == (FILES - adapter - tokenizer) | MERGED | {package.ZIP}
    card = (out / "README.md").read_text()
    assert "PeftModel" not in card and "library_name: transformers" in card
    assert 'AutoModelForCausalLM.from_pretrained("merged", dtype="auto")' in card and "vllm serve ./merged" in card
    assert "- Merged: A model that needs no peft, in `merged/`, bfloat16." in (out / "report.md").read_text()
    (form,) = json.loads((out / "metrics.json").read_text())["export"]["forms"]
    assert (form["format"], form["dtype"], form["merge_base"]) == ("merged", "bfloat16", "")
    assert model_of(out / "merged", dtype="auto").dtype == torch.bfloat16
    (shown,) = result.forms
    assert shown.dtype == "bfloat16" and shown.comparison.checkpoint_dtype == "float32"
    assert 0 < shown.comparison.mean_kl <= shown.comparison.p99_kl and shown.comparison.max_mean_kl == 0.02
    assert not shown.comparison.HasField("max_max_difference")


def test_merged_form_alone_reports_the_trained_settings(export_input: ExportInput, tmp_path: Path) -> None:
    """The record of a training must not depend on the form of the package."""
    export(export_input, tmp_path, config=resolved(export={"formats": ["merged"]}))
    lora = json.loads((export_input.out_dir / "training_config.json").read_text())["lora"]
    assert lora["r"] == 4 and lora["target_modules"]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("merge_base", ["trained", "original"])
def test_qlora_is_merged_into_the_weights_that_are_asked_for(
    export_input: ExportInput, tuned: SimpleNamespace, tmp_path: Path, bits: Any, merge_base: str
) -> None:
    """By default the package has what was trained and evaluated; another model is only what the caller asked for."""
    adapter = quantised_adapter(tuned.base, tmp_path / "adapter", Quantization(bits=bits))
    config = resolved(
        method="qlora",
        quantization={"bits": bits},
        export={"formats": ["merged"], "merge_base": merge_base},
    )
    (form,) = export(export_input, tmp_path, config=config, adapter_dir=adapter).forms
    assert form.merge_base == merge_base
    original = model_of(tuned.base).state_dict()
    found = load_file(export_input.out_dir / "merged" / "model.safetensors")
    assert torch.equal(found["model.norm.weight"], original["model.norm.weight"])
    delta = found["model.layers.0.mlp.up_proj.weight"] - original["model.layers.0.mlp.up_proj.weight"]
    rank = torch.linalg.matrix_rank(delta, rtol=1e-3)
    assert int(rank) == 4 if merge_base == "original" else int(rank) > 4, "the error of quantization has every rank"
    if merge_base == "original":
        assert form.comparison.mean_kl > 0
        assert not form.comparison.HasField("max_mean_kl") and not form.comparison.HasField("max_max_difference")
    else:
        assert form.comparison.max_difference <= form.comparison.max_max_difference == pytest.approx(1e-3)
    assert ("not into the quantized ones" if merge_base == "original" else "dequantized") in (
        export_input.out_dir / "README.md"
    ).read_text()


@pytest.mark.parametrize("dtype", ["", "float16"])
def test_full_fine_tuning_is_exported_in_the_format_of_its_base_model(
    export_input: ExportInput, tmp_path: Path, dtype: str
) -> None:
    """Training needs float32; a served model of twice the size of its base model would be a surprise."""
    base, weights = make_tiny_model(tmp_path / "base"), make_tiny_model(tmp_path / "full", seed=2)
    model_of(base).to(torch.bfloat16).save_pretrained(base)
    config = resolved(method="full", export={"formats": ["merged", "adapter"], "dtype": dtype})
    model = export_input.model.model_copy(update={"path": base})
    _, form = export(export_input, tmp_path, config=config, model=model, adapter_dir=weights).forms
    assert form.dtype == (dtype or "bfloat16") and form.merge_base == ""
    expected = getattr(torch, form.dtype)
    found, trained = load_file(export_input.out_dir / "merged/model.safetensors"), model_of(weights).state_dict()
    assert all(torch.equal(value, trained[name].to(expected)) for name, value in found.items())


@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"]])
def test_tied_head_that_was_trained_apart_is_verified(
    export_input: ExportInput, tmp_path: Path, saved: list[str]
) -> None:
    """Saved as one tensor, head or embedding would be lost, and the model would answer with noise."""
    from transformers import LlamaConfig, LlamaForCausalLM

    base = make_tiny_model(tmp_path / "tied")
    (base / "model.safetensors").unlink()
    settings = LlamaConfig.from_pretrained(base, tie_word_embeddings=True)
    LlamaForCausalLM(settings).save_pretrained(base, max_shard_size="60KB")
    adapter = random_adapter(
        base, tmp_path / "adapter", modules_to_save=saved, ensure_weight_tying=saved != ["lm_head"]
    )
    config = resolved(
        lora={"r": 4, "lora_alpha": 8.0, "modules_to_save": saved}, export={"formats": ["merged"], "dtype": "float32"}
    )
    model = export_input.model.model_copy(update={"path": base})
    (form,) = export(export_input, tmp_path, config=config, model=model, adapter_dir=adapter).forms
    merged = export_input.out_dir / "merged"
    shards = sorted(file.name for file in merged.glob("*.safetensors"))
    assert shards == sorted(file.name for file in base.glob("*.safetensors")) and len(shards) > 1
    assert form.size_bytes == sum((merged / name).stat().st_size for name in shards)
    checkpoint = PeftModel.from_pretrained(model_of(base), adapter)
    assert torch.allclose(logits(model_of(merged)), logits(checkpoint), atol=1e-4)


@pytest.mark.parametrize("settings", [{"use_dora": True}, {"use_rslora": True}, {"bias": "all"}])
def test_every_kind_of_adapter_is_merged(export_input: ExportInput, tmp_path: Path, settings: dict[str, Any]) -> None:
    """A job that has trained for hours would fail in its last stage."""
    base = make_tiny_model(tmp_path / "biased", biases=True)
    adapter = random_adapter(base, tmp_path / "adapter", **settings)
    config = resolved(lora={"r": 4, "lora_alpha": 8.0, **settings}, export={"formats": ["merged"]})
    model = export_input.model.model_copy(update={"path": base})
    (form,) = export(export_input, tmp_path, config=config, model=model, adapter_dir=adapter).forms
    assert form.comparison.max_difference <= 1e-3


def test_same_job_gives_the_same_bytes(export_input: ExportInput, tmp_path: Path) -> None:
    """Otherwise nobody can tell a changed package from a repeated one."""
    config = resolved(export={"formats": ["adapter", "merged"], "dtype": "bfloat16"})
    first = export(export_input, tmp_path, config=config)
    again = export(export_input, tmp_path, config=config, out_dir=tmp_path / "again")
    assert again.package_sha256 == first.package_sha256


def test_models_are_compared_on_held_out_rows_or_prompts(export_input: ExportInput, tmp_path: Path) -> None:
    """One sentence shows less than what the model is for."""
    import numpy

    rows = [list(range(5, 5 + length)) for length in range(1, 100)]
    with ShardWriter(tmp_path / "eval", "rows") as writer:
        ids = numpy.concatenate([numpy.array(row, numpy.int32) for row in rows])
        lengths = numpy.array([len(row) for row in rows], numpy.int32)
        writer.write(TokenRows(ids, ids, lengths, "evaluation_data[0]", numpy.arange(len(rows), dtype=numpy.uint32)))
    config = resolved(export={"formats": ["merged"]}, evaluation={"prompts": ["What is it?", "And this?"]})
    (form,) = export(export_input, tmp_path, config=config, held_out=tmp_path / "eval").forms
    assert (form.comparison.rows, form.comparison.num_rows) == ("held_out", 64)
    assert form.comparison.num_positions == sum(range(1, 65)), "a row of one token predicts nothing"
    (form,) = export(export_input, tmp_path, config=config, out_dir=tmp_path / "prompts").forms
    assert (form.comparison.rows, form.comparison.num_rows) == ("prompts", 2)


def corrupting(name: str) -> Any:
    def corrupt(base: Path, adapter: Path | None, target: Path, **options: Any) -> None:
        merge(base, adapter, target, **options)
        tensors = load_file(target / "model.safetensors")
        save_file({**tensors, name: -tensors[name]}, target / "model.safetensors", metadata={"format": "pt"})

    return corrupt


@pytest.mark.parametrize("fits", [True, False])
def test_model_with_a_wrong_tensor_is_not_published(
    export_input: ExportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    """A model that answers differently from the one that was trained is the worst result of an export."""
    name, sink = "model.layers.1.self_attn.o_proj.weight", RecordingSink()
    monkeypatch.setattr(merged_form, "merge", corrupting(name))
    if not fits:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**40, available=1000))
    with pytest.raises(JobError, match=name) as error:
        export(export_input, tmp_path, sink, config=resolved(export={"formats": ["merged", "adapter"]}))
    assert error.value.reason == "EXPORT_DIFFERS"
    if fits:
        assert "mean KL" in error.value.message and "bound: difference 0.001" in error.value.message
    assert not [event for event in sink.said if isinstance(event, ArtifactSaved)]
    assert list(export_input.out_dir.iterdir()) == []


def test_number_format_that_is_too_coarse_is_refused(export_input: ExportInput, tmp_path: Path) -> None:
    """float16 ends at 65,504: such a model answers with noise."""
    base = make_tiny_model(tmp_path / "large")
    model = model_of(base)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight *= 1e6
        model.model.layers[0].mlp.down_proj.weight *= 1e-6
    model.save_pretrained(base)
    adapter = random_adapter(base, tmp_path / "adapter")
    config = resolved(export={"formats": ["merged"], "dtype": "float16"})
    files = export_input.model.model_copy(update={"path": base})
    with pytest.raises(JobError, match="too coarse") as error:
        export(export_input, tmp_path, config=config, model=files, adapter_dir=adapter)
    assert error.value.reason == "EXPORT_DIFFERS" and "float32" in error.value.advice


def test_model_that_does_not_fit_is_compared_by_tensors(
    export_input: ExportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that nobody has run must not look like one that was."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**40, available=1000))
    sink = RecordingSink()
    result = export(export_input, tmp_path, sink, config=resolved(export={"formats": ["merged"]}))
    assert [event.reason for event in sink.said if isinstance(event, Warning)] == ["VERIFIED_WITHOUT_MODEL"]
    (form,) = result.forms
    assert not form.HasField("comparison")
