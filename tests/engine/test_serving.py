"""What can serve a package, and what a job is told before it trains."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.catalogue import LocalModel
from engine.config.job import ExportFormat, Lora, job_config
from engine.errors import JobError
from engine.estimate.known_architectures import known
from engine.plan.export_checks import check_export
from engine.plan.resolved import Resolved
from engine.serving import READERS, Contents, adapter_settings, ollama_name, servable_by


def contents(*formats: ExportFormat, **lora: Any) -> Contents:
    settings = Lora.model_validate(lora)
    return Contents(formats, adapter_settings(settings, settings.r), "llama", "org/name", "a" * 40)


def test_package_with_both_forms_names_a_command_for_each_reader() -> None:
    """Who has trained a model wants to serve it, and not to read five manuals first."""
    found = servable_by(contents("adapter", "merged", r=24))
    assert tuple(dict.fromkeys(each.reader for each in found)) == READERS
    commands = {(each.reader, each.format): each.command for each in found if not each.refusal}
    assert commands["vllm", "merged"] == "vllm serve ./merged"
    assert "vllm serve org/name" in commands["vllm", "adapter"] and "--max-lora-rank 32" in commands["vllm", "adapter"]
    assert "merged" in commands["transformers", "merged"] and commands["peft", "adapter"]
    assert {each.reader for each in found if each.format is None} == {"llama.cpp", "ollama"}
    assert all(bool(each.refusal) != bool(each.command) for each in found)


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "biases"),
        ({"trainable_tokens": ["<x>"]}, "trainable_tokens"),
        ({"r": 1024}, "largest rank is 512"),
    ],
)
def test_adapter_that_ends_vllm_is_refused_there_and_served_merged(lora: dict[str, Any], reason: str) -> None:
    """vLLM starts with such an adapter, and its engine ends with the first question."""
    found = {each.format: each for each in servable_by(contents("adapter", "merged", **lora)) if each.reader == "vllm"}
    assert reason in found["adapter"].refusal and not found["adapter"].command
    assert found["merged"].command


def test_package_of_an_inl_model_says_what_loads_it() -> None:
    """transformers alone does not know its type, and servers for transformers neither."""
    made = contents("adapter", "merged")
    found = servable_by(replace(made, model_type="inl"))
    refused = {each.reader for each in found if each.refusal and each.format}
    assert refused == {"transformers", "vllm"}  # transformers: the adapter
    loaded = [each.command for each in found if each.command]
    assert len(loaded) == 2 and all("register_inl" in command for command in loaded)


def local(folder: Path) -> LocalModel:
    return LocalModel("tiny", "r1", folder, "", 1, 512, "LlamaForCausalLM", "")


def checked(folder: Path, **spec: Any) -> Resolved:
    given = {"base_model": "tiny", "training_data": [{"dataset": "d"}], "method": "lora", **spec}
    resolved = Resolved(job_config(given))
    check_export(resolved, local(folder), known("smollm2-135m"))
    return resolved


def test_job_whose_export_nothing_serves_is_warned(tmp_path: Path) -> None:
    """After the training it would be too late to choose another adapter."""
    dora = {"use_dora": True}
    (warning,) = checked(tmp_path, lora=dora).warnings
    assert warning.reason == "EXPORT_NOT_SERVABLE" and "vllm: it has no DoRA" in warning.message
    assert warning.message.startswith("Only peft can load")
    assert """--set export.formats='["adapter", "merged"]'""" in warning.advice
    assert not checked(tmp_path, lora=dora, export={"formats": ["adapter", "merged"]}).warnings
    assert not checked(tmp_path).warnings
    assert not checked(tmp_path, method="full").warnings


@pytest.mark.parametrize(
    ("method", "formats", "loading"),
    [
        ("full", ["adapter"], "transformers"),
        ("full", ["adapter", "merged"], "transformers"),
        ("lora", ["adapter", "merged"], "peft and transformers"),
        ("lora", ["adapter"], "peft"),
    ],
)
def test_warning_names_what_loads_an_inl_model(tmp_path: Path, method: str, formats: list[str], loading: str) -> None:
    """Readers as `servable_by` names them, and each reason once."""
    resolved = Resolved(
        job_config(
            {
                "base_model": "inl-small",
                "training_data": [{"dataset": "d"}],
                "method": method,
                "export": {"formats": formats},
            }
        )
    )
    architecture = replace(known("smollm2-135m"), model_type="inl")
    check_export(resolved, local(tmp_path), architecture)
    (warning,) = resolved.warnings
    assert warning.message == (
        f"Only {loading} can load what this job exports (vllm: it has no INL models; llama.cpp: the package has no "
        "GGUF file; ollama: the package has no GGUF file with a Modelfile)."
    )


def test_adapter_in_gguf_names_the_file_of_the_base_model_beside_it() -> None:
    """The package does not have it, and a command without it would load nothing."""
    found = {each.reader: each for each in servable_by(contents("gguf_adapter"))}
    made_by = f"  # BASE.gguf: ftf export org/name@{'a' * 40} --format gguf"
    command = f"llama-server -m BASE.gguf --lora gguf_adapter/NAME-lora.gguf{made_by}"
    assert found["llama.cpp"].command == command
    assert found["ollama"].command.endswith(made_by)
    assert found["vllm"].refusal == "the package has no model in its format"


def test_folder_for_ollama_is_beside_the_package() -> None:
    """`ftf verify` refuses a package with a file that its manifest does not name."""
    found = {each.reader: each for each in servable_by(contents("gguf_adapter"))}
    assert found["ollama"].command.startswith(
        "mkdir -p ../tuned-adapter && cp gguf_adapter/* ../tuned-adapter/ && cp BASE.gguf ../tuned-adapter/BASE.gguf "
        "&& ollama create tuned-adapter -f ../tuned-adapter/Modelfile && ollama run tuned-adapter"
    )


def test_two_forms_of_a_job_have_two_names_in_ollama() -> None:
    """The second would replace the first, and that of another job."""
    made = replace(contents("gguf", "gguf_adapter"), model_name=ollama_name("Docs | helper 2"))
    commands = [each.command for each in servable_by(made) if each.reader == "ollama"]
    assert "ollama create docs-helper-2 -f" in commands[0] and "ollama create docs-helper-2-adapter -f" in commands[1]
    assert ollama_name("é") == "tuned" and ollama_name("x" * 39 + " yz") == "x" * 39


def test_adapter_that_no_gguf_file_can_express_is_refused_before_the_training(tmp_path: Path) -> None:
    """The settings may be those of the adapter that the training starts from, which the spec does not show."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    config = job_config({"base_model": "tiny", "training_data": [{"dataset": "d"}], "lora": {"use_dora": True}})
    asked = config.export.model_copy(update={"formats": ["gguf_adapter"]})
    resolved = Resolved(config.model_copy(update={"export": asked, "method": "lora"}))
    check_export(resolved, local(tmp_path), known("smollm2-135m"))
    (refusal,) = resolved.refusals
    assert isinstance(refusal, JobError) and refusal.reason == "GGUF_UNSUPPORTED" and "no DoRA" in refusal.message


def test_base_model_that_cannot_be_merged_is_refused_before_the_training(tmp_path: Path) -> None:
    """A KeyError in the last stage would cost the whole training."""
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    assert not checked(tmp_path).refusals
    (refusal,) = checked(tmp_path, export={"formats": ["merged"]}).refusals
    assert isinstance(refusal, JobError) and refusal.reason == "MERGE_UNSUPPORTED" and "F8_E4M3" in refusal.message
