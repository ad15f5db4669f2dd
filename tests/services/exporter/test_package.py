"""Tests for the contents of the exported zip and for loading it."""

import hashlib
import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from chassis.child.pipe import EventSink
from finetuneflow.v1.event_pb2 import ArtifactSaved, Phase
from services.exporter.phases import PHASES
from services.exporter.worker import package
from services.exporter.worker.__main__ import main
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.verify import PackageBroken, verify
from tests.services.exporter.conftest import random_adapter, resolved
from tests.tiny_models import make_tiny_model

FILES = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "generation_config.json",
    "manifest.json",
    "metrics.json",
    "report.md",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "train_loss.png",
    "training_config.json",
    "training_log.json",
    "training_metadata.json",
}


class RecordingSink(EventSink):
    """Records what the worker emits."""

    def __init__(self) -> None:
        super().__init__(None, None)
        self.said: list[Message] = []

    def emit(self, payload: Message, severity: Any = None) -> None:
        self.said.append(payload)


@pytest.fixture
def out(export_input: ExportInput, input_file: Path) -> Path:
    main(RecordingSink(), input_file)
    return export_input.out_dir


def test_every_file_is_published_with_hash_and_in_the_zip(export_input: ExportInput, input_file: Path) -> None:
    sink = RecordingSink()
    result = main(sink, input_file)

    saved = {event.path: event for event in sink.said if isinstance(event, ArtifactSaved)}
    assert set(saved) == FILES | {package.ZIP}
    assert {path.name for path in export_input.out_dir.iterdir()} == FILES | {package.ZIP}
    for name, event in saved.items():
        data = (export_input.out_dir / name).read_bytes()
        assert (event.sha256, event.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
        assert event.kind == ("export_package" if name == package.ZIP else "export_file")
        assert event.media_type
    assert result.package_path == package.ZIP
    assert (result.package_sha256, result.package_size_bytes) == (
        saved[package.ZIP].sha256,
        saved[package.ZIP].size_bytes,
    )
    assert list(dict.fromkeys(event.name for event in sink.said if isinstance(event, Phase))) == list(PHASES)

    with zipfile.ZipFile(export_input.out_dir / package.ZIP) as archive:
        assert set(archive.namelist()) == FILES
        assert archive.testzip() is None
        manifest = json.loads(archive.read("manifest.json"))
        assert {entry["path"] for entry in manifest["files"]} == FILES - {"manifest.json"}
        for entry in manifest["files"]:
            assert hashlib.sha256(archive.read(entry["path"])).hexdigest() == entry["sha256"]


def test_zip_of_the_same_job_is_reproducible(export_input: ExportInput, input_file: Path, tmp_path: Path) -> None:
    first = main(RecordingSink(), input_file)
    again = export_input.model_copy(update={"out_dir": tmp_path / "again"})
    input_file.write_text(again.model_dump_json())
    assert main(RecordingSink(), input_file).package_sha256 == first.package_sha256


def test_zip_loads_with_peft_and_has_the_checkpoints_loss(export_input: ExportInput, out: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with zipfile.ZipFile(out / package.ZIP) as archive:
        archive.extractall(tmp_path / "theirs")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    messages = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A test."}]
    batch = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)

    def loss(adapter: Path | None) -> float:
        model = AutoModelForCausalLM.from_pretrained(export_input.model.path)
        if adapter:
            model = PeftModel.from_pretrained(model, adapter)
        with torch.inference_mode():
            return float(model(**batch, labels=batch["input_ids"]).loss)

    assert loss(tmp_path / "theirs") == loss(export_input.adapter_dir)
    assert abs(loss(tmp_path / "theirs") - loss(None)) > 1e-3


def test_adapter_refers_to_base_by_public_id_without_local_paths(export_input: ExportInput, out: Path) -> None:
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"], config["inference_mode"]) == ("tiny", "r1", True)
    machine = str(export_input.model.path.parent).encode()
    assert not [file.name for file in out.iterdir() if machine in file.read_bytes()]


def test_metrics_contain_both_curves_and_the_samples(out: Path) -> None:
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["train_loss_curve"][0] == {"step": 1, "loss": 4.0}
    assert metrics["train_loss_curve"][2] == {"step": 3, "loss": None}
    assert [point["step"] for point in metrics["eval_loss_curve"]] == [2, 4, 6]
    lines = [json.loads(line) for line in (out / "training_log.json").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    assert (lines[1]["loss"], lines[2]["eval_loss"], lines[3]["loss"]) == (3.6, 3.7, None)
    facts = json.loads((out / "training_metadata.json").read_text())
    assert (facts["technique"], facts["total_steps"], facts["estimated_tokens_per_second"]) == ("lora", 6, None)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    assert (metrics["train_loss"], metrics["eval_loss"], metrics["best_step"]) == (3.28, 3.2, 4)
    assert (metrics["train_runtime"], metrics["train_samples_per_second"]) == (125.4, 9.5)
    assert metrics["evaluation"]["base"]["loss"] == 4.0
    assert metrics["evaluation"]["tuned"]["loss"] == 3.1987
    sample = metrics["inference_samples"][0]
    assert {"instruction", "input", "expected_output", "model_output", "output_length"} <= set(sample)


def test_training_config_has_common_names_and_the_whole_configuration(out: Path) -> None:
    config = json.loads((out / "training_config.json").read_text())
    assert config["training"]["max_seq_length"] == 2048
    assert config["training"]["warmup_ratio"] == 0.03
    assert (config["training"]["fp16"], config["training"]["bf16"]) == (False, False)
    assert config["lora"]["r"] == 4
    assert {name.rpartition(".")[2] for name in config["lora"]["target_modules"]} >= {"q_proj", "down_proj"}
    assert config["config"]["hyperparameters"]["learning_rate"] == 2e-4
    assert config["datasets"][0]["id"] == "ds_1"


def test_special_tokens_are_the_tokenizers(out: Path) -> None:
    special = json.loads((out / "special_tokens_map.json").read_text())
    assert special["eos_token"] == "<|im_end|>"
    assert special["bos_token"] == "<|im_start|>"
    assert special["pad_token"] == "<|endoftext|>"


def test_model_card_has_hub_metadata(out: Path) -> None:
    from huggingface_hub import ModelCard

    data = ModelCard((out / "README.md").read_text()).data
    assert (data.base_model, data.library_name, data.license) == (None, "peft", "apache-2.0"), "tiny is not on the hub"
    assert "lora" in data.tags


def test_custom_chat_template_is_packed(export_input: ExportInput, input_file: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    changed = export_input.model_copy(update={"config": resolved(chat_template=template)})
    input_file.write_text(changed.model_dump_json())
    main(RecordingSink(), input_file)
    assert (export_input.out_dir / "chat_template.jinja").read_text() == template


def test_full_fine_tuning_is_packed_as_a_model(export_input: ExportInput, input_file: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    weights = make_tiny_model(tmp_path / "full", seed=2)
    config = resolved(method="full", export={"formats": ["adapter"]})
    changed = export_input.model_copy(update={"config": config, "adapter_dir": weights})
    input_file.write_text(changed.model_dump_json())
    main(RecordingSink(), input_file)
    out = export_input.out_dir
    assert not list(out.glob("adapter*"))
    assert "LoRA rank" not in (out / "report.md").read_text()
    with zipfile.ZipFile(out / package.ZIP) as archive:
        archive.extractall(tmp_path / "theirs")
    AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({"bias": "all"}, {}),
        ({"bias": "lora_only"}, {}),
        ({"modules_to_save": ["lm_head"]}, {}),
        ({"trainable_tokens": ["<|im_end|>"]}, {"trainable_token_indices": [2]}),
    ],
    ids=lambda each: next(iter(each), ""),
)
def test_adapter_with_more_than_lora_is_verified(
    export_input: ExportInput, input_file: Path, tmp_path: Path, settings: dict[str, Any], trained: dict[str, Any]
) -> None:
    """A job that has trained for hours would fail in its last stage."""
    base = make_tiny_model(tmp_path / "biased", biases=True)
    adapter = random_adapter(base, tmp_path / "adapter", **trained or settings)
    config = resolved(lora={"r": 4, "lora_alpha": 8.0, **settings})
    model = export_input.model.model_copy(update={"path": base})
    changed = export_input.model_copy(update={"config": config, "model": model, "adapter_dir": adapter})
    input_file.write_text(changed.model_dump_json())
    main(RecordingSink(), input_file)
    assert (export_input.out_dir / package.ZIP).is_file()


def test_package_that_differs_from_checkpoint_is_not_published(
    export_input: ExportInput, out: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    files = tmp_path / "files"
    with zipfile.ZipFile(out / package.ZIP) as archive:
        archive.extractall(files)
    tensors = load_file(files / "adapter_model.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, files / "adapter_model.safetensors")
    (files / "manifest.json").unlink()
    package.write_manifest(export_input, files)
    package.write_zip(files, tmp_path / "broken.zip")
    with pytest.raises(PackageBroken, match="differs from the checkpoint"):
        verify(export_input, tmp_path / "broken.zip", tmp_path / "scratch")


def test_child_without_supervisor_prints_its_progress(input_file: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "services.exporter.worker", str(input_file)], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    assert "stage_completed" in child.stdout.splitlines()[-1]
