"""The code in a package's README prompts the model in the format of its training rows."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import load_from_disk
from huggingface_hub import ModelCard, ModelCardData

from chassis.child.pipe import EventSink
from engine.data.prepare import prepare
from engine.plan.findings import data_statistics
from finetuneflow.v1.stage_result_pb2 import EvaluationResult, InferenceSample, PreflightResult
from services.exporter.worker.__main__ import main
from services.exporter.worker.child_input import DatasetFile, ExportInput
from tests.services.exporter.conftest import random_adapter, resolved
from tests.tiny_models import make_tiny_llama, make_tiny_tokenizer

QUESTION = {"role": "user", "content": "What is it?"}
ANSWER = {"role": "assistant", "content": "A test."}
FORMATS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": ({"text": "Once upon a time there was a test."}, {}),
    "prompt_completion": ({"prompt": "Q: what\nA:", "completion": " a test."}, {}),
    "prompt_completion of turns": ({"prompt": [QUESTION], "completion": [ANSWER]}, {}),
    "chat": ({"messages": [QUESTION, ANSWER]}, {}),
    "question_answer": ({"question": "What is it?", "answer": "A test."}, {}),
    "instruction": ({"instruction": "Say what it is.", "input": "A \"test\"", "output": "A test."}, {}),
    "with a system prompt": ({"messages": [QUESTION, ANSWER]}, {"system_prompt": "Be ```brief```.\n'So' \"be\" \\it."}),
    "with a template of its own": (
        {"messages": [QUESTION, ANSWER]},
        {"chat_template": "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"},
    ),
    "tokenized": ({"input_ids": [50, 51, 52], "labels": [50, 51, 52]}, {}),
}  # fmt: skip


@pytest.mark.parametrize("has_template", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_code_in_model_card_uses_the_prompt_format_of_the_rows(
    name: str, has_template: bool, export_input: ExportInput, tuned: SimpleNamespace, tmp_path: Path, monkeypatch: Any
) -> None:
    """It failed for plain text, and prompted others in a format that the model was not trained on."""
    row, settings = FORMATS[name]
    base = shutil.copytree(tuned.base, tmp_path / "base")
    if not has_template:
        (base / "chat_template.jinja").unlink()
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(row) + "\n")
    config = resolved(holdout_fraction=0.0, **settings)
    prepared = prepare(config, base, {"ds_1": rows}, tmp_path / "data", lambda *_: None)
    changed = export_input.model_copy(
        update={
            "config": config,
            "model": export_input.model.model_copy(update={"path": base}),
            "preflight": PreflightResult(training_data=data_statistics(prepared.train)),
            "evaluation": EvaluationResult(samples=[_sample(row)]),
        }
    )
    input_file = tmp_path / "input.json"
    input_file.write_text(changed.model_dump_json())
    main(EventSink(None, None), input_file)

    package = export_input.out_dir
    (code,) = re.findall(r"```python\n(.*?)\n```\n", (package / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(package)
    said: dict[str, Any] = {}
    exec(code.replace('base = "…"', f"base = {str(base)!r}"), said)  # noqa: S102 - it is what a reader runs
    asked = said["inputs"]["input_ids"][0].tolist()
    trained = load_from_disk(str(tmp_path / "data" / "train"))[0]["input_ids"]
    if name not in ("text", "tokenized"):
        assert trained[: len(asked)] == asked
    assert len(said["output"]) > len(asked)
    is_chat = name not in ("text", "tokenized", "prompt_completion")
    assert (package / "chat_template.jinja").exists() == is_chat
    assert "chat_template" not in json.loads((package / "tokenizer_config.json").read_text())


def _sample(row: dict[str, Any]) -> InferenceSample:
    asked = row.get("instruction") or row.get("question") or row.get("prompt") or "What is it?"
    return InferenceSample(
        instruction=asked if isinstance(asked, str) else asked[-1]["content"], input=row.get("input", "")
    )


def test_model_card_shows_chat_and_plain_text_for_mixed_data(export_input: ExportInput) -> None:
    from services.exporter.worker.model_card import model_card

    export_input.preflight.training_data.format = "chat, text"
    card = model_card(export_input)
    assert card.count("model.generate") == 2 and "apply_chat_template" in card


def test_tokenizer_config_contains_no_local_paths(export_input: ExportInput, input_file: Path) -> None:
    main(EventSink(None, None), input_file)
    settings = json.loads((export_input.out_dir / "tokenizer_config.json").read_text())
    assert not {"local_files_only", "is_local", "name_or_path"} & set(settings)
    modules = json.loads((export_input.out_dir / "adapter_config.json").read_text())["target_modules"]
    assert modules == sorted(modules)


def test_model_card_says_that_a_model_is_worse_than_its_base(export_input: ExportInput) -> None:
    """Whoever finds the package later reads nothing else of the job."""
    from services.exporter.worker.model_card import model_card

    assert "do not serve it" not in model_card(export_input)
    export_input.evaluation.tuned_loss = export_input.evaluation.base_loss + 1
    assert "worse than its base model: do not serve it" in model_card(export_input)


def test_hub_reads_the_metadata_of_a_model_card(export_input: ExportInput) -> None:
    """The hub lists a model by them: what it was made of, its licence and its figures."""
    from services.exporter.worker.model_card import model_card

    files = [DatasetFile(id=id, filename="rows.jsonl", sha256="1" * 64) for id in ("ds_1", f"hf://org/rows@{'c' * 40}")]
    export_input.job.datasets[:] = files
    export_input.evaluation.metrics.add(name="bleu", tuned=float("nan"))
    assert ModelCard(model_card(export_input)).data.base_model is None, "the hub refuses what is no model of its own"
    export_input.model.id = "org/tiny"
    data = ModelCard(model_card(export_input)).data
    assert isinstance(data, ModelCardData)
    assert (data.base_model, data.base_model_relation, data.library_name) == ("org/tiny", "adapter", "peft")
    assert (data.license, data.pipeline_tag, data.datasets) == ("apache-2.0", "text-generation", ["org/rows"])
    assert data.model_name == "Docs | helper" and data.eval_results
    assert {result.metric_type: result.metric_value for result in data.eval_results} == {
        "loss": pytest.approx(3.1987),
        "perplexity": pytest.approx(24.5),
    }
    assert {result.dataset_type for result in data.eval_results} == {"org/rows"}
    other = ModelCard(model_card(export_input.model_copy(update={"step": 2, "evaluation": EvaluationResult()})))
    assert other.data.eval_results is None and "step 2. It was not evaluated" in other.text


@pytest.mark.parametrize("of_base", [False, True])
def test_owner_of_a_model_that_began_with_random_weights_chooses_its_licence(
    export_input: ExportInput, of_base: bool
) -> None:
    """Nobody else has a right to such weights; only the tokenizer is another model's."""
    from services.exporter.worker.model_card import base_model_card, model_card
    from services.exporter.worker.report import base_model_report

    model = export_input.model.model_copy(update={"id": "inl-small,tokenizer=org/name,seed=7", "license": ""})
    changed = export_input.model_copy(update={"model": model, "of_base": of_base})
    text = base_model_card(changed, (), ()) if of_base else model_card(changed)
    assert ModelCard(text).data.license is None
    assert "the licence is the owner's to choose; the tokenizer is that of `org/name`" in text
    assert "licence is the base model's" not in text and "unknown" not in text
    assert "- Licence: none; its weights are random numbers" in base_model_report(changed, (), ())


@pytest.mark.parametrize("initial", [pytest.param("loftq", marks=pytest.mark.long), "default"])
def test_code_loads_the_quantized_base_model_of_the_training(
    export_input: ExportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, initial: str
) -> None:
    """On a CPU it failed for layers whose sizes are not multiples of 32, and for plain QLoRA nothing showed it."""
    from services.exporter.worker.model_card import model_card

    base = make_tiny_llama(tmp_path / "base", hidden_size=72, intermediate_size=100)
    package = random_adapter(base, tmp_path / "package")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, package)
    quantization = {"bnb_4bit_use_double_quant": False, "bnb_4bit_compute_dtype": "fp32"}
    config = resolved(method="qlora", lora={"r": 4, "init_lora_weights": initial}, quantization=quantization)
    card = model_card(export_input.model_copy(update={"config": config}))
    blocks = re.findall(r"```python\n(.*?)\n```\n", card, re.DOTALL)
    assert len(blocks) == (1 if initial == "loftq" else 2)
    monkeypatch.chdir(package)
    said: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace('base = "…"', f"base = {str(base)!r}"), said)  # noqa: S102 - it is what a reader runs
    loaded = said["model"].config.quantization_config
    assert (loaded.load_in_4bit, loaded.bnb_4bit_use_double_quant) == (True, False)
    assert loaded.bnb_4bit_compute_dtype == torch.float32
    assert said["model"].generate(**said["inputs"], max_new_tokens=2).shape[1] > said["inputs"]["input_ids"].shape[1]


@pytest.mark.long
def test_code_in_model_card_loads_an_inl_model(
    export_input: ExportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers alone does not know the type of the base model; the package of its merged form loads as well."""
    from engine.inl_sizes import ARCHITECTURE, InlSize
    from engine.model.random_weights import write_random_weights

    base = make_tiny_tokenizer(tmp_path / "base")
    (base / "config.json").write_text(json.dumps(InlSize(32, 2, 3, 512).config(384)))
    write_random_weights(base, 0)
    changed = export_input.model_copy(
        update={
            "config": resolved(export={"formats": ["adapter", "merged"]}),
            "model": export_input.model.model_copy(update={"path": base, "architecture": ARCHITECTURE}),
            "adapter_dir": random_adapter(base, tmp_path / "adapter"),
        }
    )
    (tmp_path / "input.json").write_text(changed.model_dump_json())
    main(EventSink(None, None), tmp_path / "input.json")
    codes = re.findall(r"```python\n(.*?)\n```\n", (export_input.out_dir / "README.md").read_text(), re.DOTALL)
    assert len(codes) == 2
    monkeypatch.chdir(export_input.out_dir)
    for code in codes:
        assert "\nregister_inl()\n" in code
        exec(code.replace('base = "…"', f"base = {str(base)!r}"), said := dict[str, Any]())  # noqa: S102 - it is what a reader runs
        assert len(said["output"]) > said["inputs"]["input_ids"].shape[1]
