"""The packed tokenizer and chat template make the tokens of the training of a conversation."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from engine.config.job import DataSource
from engine.data.prepare import prepare_evaluation
from engine.errors import JobError
from finetuneflow.v1.event_pb2 import ArtifactSaved
from services.exporter.worker import package
from services.exporter.worker.child_input import ExportInput
from tests.services.exporter.conftest import resolved
from tests.services.exporter.test_merged import export
from tests.services.exporter.test_package import RecordingSink


@pytest.fixture
def with_rows(export_input: ExportInput, tmp_path: Path) -> ExportInput:
    """The same export with held-out rows; one is longer than max_length, one repeats a control token."""
    config = resolved(hyperparameters={"max_length": 64}, export={"formats": ["adapter", "merged"]})
    rows: list[dict[str, Any]] = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(3)]
    rows.append({"question": "And the longest?", "answer": "again and " * 80})
    rows.append({"question": "Ends?", "answer": "Yes.<|im_end|>"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = DataSource(dataset="ds_2")
    files, out = {"ds_2": tmp_path / "rows.jsonl"}, tmp_path / "shards"
    prepare_evaluation(config, [source], export_input.model.path, files, out, lambda phase, fraction: None)
    changes = {"config": config, "held_out": out / "eval", "held_out_texts": out / "eval_rows.jsonl"}
    return export_input.model_copy(update=changes)


def test_held_out_conversations_are_rendered_to_the_trained_tokens(with_rows: ExportInput, tmp_path: Path) -> None:
    """A template that differs by one space gives a model that answers worse, and nobody sees why."""
    adapter, merged = export(with_rows, tmp_path).forms
    assert adapter.num_rendered_rows == merged.num_rendered_rows == 5
    end = PreTrainedTokenizerFast.from_pretrained(with_rows.out_dir).convert_tokens_to_ids("<|im_end|>")
    for folder in (with_rows.out_dir, with_rows.out_dir / "merged"):
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == end


@pytest.mark.long
def test_token_that_ends_a_trained_answer_ends_a_generation(with_rows: ExportInput, tmp_path: Path) -> None:
    """A base model that stops at its end of text only would write on after each answer."""
    base = tmp_path / "base"
    base.mkdir()
    for file in with_rows.model.path.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "eos_token_id": 0}))
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "temperature": 0.5, "do_sample": True}))
    model = with_rows.model.model_copy(update={"path": base})
    export(with_rows, tmp_path, model=model)
    end = PreTrainedTokenizerFast.from_pretrained(base).convert_tokens_to_ids("<|im_end|>")
    for folder in (with_rows.out_dir, with_rows.out_dir / "merged"):
        found = json.loads((folder / "generation_config.json").read_text())
        assert (found["eos_token_id"], found["temperature"]) == ([0, end], 0.5)


def test_template_that_renders_other_tokens_is_not_published(
    with_rows: ExportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the model is asked in other words than those it was trained with."""
    write = package.write_tokenizer

    def changed(child_input: ExportInput, folder: Path) -> None:
        write(child_input, folder)
        template = folder / "chat_template.jinja"
        if folder.name == "merged":
            template.write_text(template.read_text().replace("message['content'] +", "message['content'] + ' ' +"))

    monkeypatch.setattr(package, "write_tokenizer", changed)
    sink = RecordingSink()
    with pytest.raises(
        JobError, match=r"Held-out row 1 is rendered by merged/ to other tokens.*token \d+ was"
    ) as error:
        export(with_rows, tmp_path, sink)
    assert error.value.reason == "EXPORT_DIFFERS"
    assert not [event for event in sink.said if isinstance(event, ArtifactSaved)]
