"""Sections and figures of the report, and escaping of the texts in it."""

import json
from pathlib import Path

import pytest

from finetuneflow.v1.stage_result_pb2 import EvaluationResult, GateDecision, HarnessResult
from services.exporter.worker.child_input import AdapterBelow, ExportInput
from services.exporter.worker.metrics import Point, metrics
from services.exporter.worker.model_card import model_card
from services.exporter.worker.plots import draw_changes, draw_losses
from services.exporter.worker.report import report


def test_report_has_sections_and_figures(export_input: ExportInput) -> None:
    text = report(export_input)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# FineTuneFlow Training Report",
        "## Project",
        "## Dataset",
        "## Training Configuration",
        "## Results",
        "## Sample Outputs",
        "## Base vs tuned",
    ]
    for line in (
        "- Name: Docs \\| helper",
        "- Task: answer questions",
        "- Train examples: 1,234",
        "- Eval examples: 137",
        "- Avg tokens per example: 56.8",
        "- Method: LoRA",
        "- Epochs: 3",
        "- Learning rate: 0.0002",
        "- LoRA rank: 4, alpha: 8",
        "- Max sequence length: 2,048",
        "- GPU: none (CPU: A processor, 2 cores)",
        "- Final train loss: 2.8000 (mean over the training 3.2800)",
        "- Perplexity: 24.53 (usual targets: below 20 on text, below 10 on code)",
        "- Eval loss above train loss: 0.5000 at the last step (some overfitting: 0.5 to 1.0)",
        "- Training time: 2 min 5 s (6 steps, stopped early)",
        "| loss | 4.0000 | 3.1987 | +0.8013 | +0.7000 to +0.9000 | 120 / 17 of 137 | better |",
        "Gate: **REJECT**",
        "- exact_match at least 0.8: measured 0.1",
        "- More rows show more.",
    ):
        assert line in text.splitlines()
    assert "- Final eval loss: 3.2000 in training (fp32) at step 4" in text


def test_report_does_not_count_continued_texts_as_answers(export_input: ExportInput) -> None:
    """Sample outputs continue rows of plain text: beside them, "0 answered" reads as a failure."""
    assert "137 of them answered. Losses" in report(export_input)
    export_input.evaluation.num_answered = 0
    text = report(export_input)
    assert "0 of them answered" not in text
    assert "no answer to them was graded (rows of plain text have none). Losses" in text


def test_rows_that_changed_most_are_shown(export_input: ExportInput, tmp_path: Path) -> None:
    """A mean that is better hides what became worse."""
    rows = tmp_path / "evaluation_rows.jsonl"
    losses = [(2.0, 1.0), (2.0, 2.5), (2.0, None), (2.0, 1.5)]
    lines = [
        {"index": index, "expected": "E", "base_answer": "B|", "tuned_answer": f"T{index}", "base_loss": before}
        | ({} if after is None else {"tuned_loss": after})
        for index, (before, after) in enumerate(losses)
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = report(export_input.model_copy(update={"evaluation_rows": rows}))
    assert "| 1 | -0.5000 | E | B\\| | T1 |" in text.splitlines()
    assert text.index("| 0 | +1.0000 |") < text.index("| 3 | +0.5000 |")
    assert "| 2 |" not in text, "a loss that is not a number is no change"
    draw_changes(tmp_path / "changes.png", "title", [1.0, -0.5])
    assert (tmp_path / "changes.png").stat().st_size > 1000


def test_values_of_a_harness_have_a_section_of_their_own(export_input: ExportInput) -> None:
    """Whoever gets the package wants to compare known benchmarks, and to know how they were measured."""
    assert "lm-evaluation-harness" not in report(export_input)
    assert metrics(export_input)["evaluation"]["harness"] is None
    found = HarnessResult(version="0.4.13", limit=100)
    found.metrics.add(
        task="sums|1",
        task_version="1.5",
        metric="exact_match",
        base=0.125,
        base_stderr=0.05,
        tuned=0.75,
        higher_is_better=True,
        num_rows=100,
        num_fewshot=2,
    )
    evaluation = EvaluationResult()
    evaluation.CopyFrom(export_input.evaluation)
    evaluation.harness.CopyFrom(found)
    measured = export_input.model_copy(update={"evaluation": evaluation})

    section = report(measured).split("## lm-evaluation-harness\n")[1].splitlines()
    assert section[0].startswith("Version 0.4.13, the first 100 rows of each task, prompts without a chat template")
    assert section[-1] == "| sums\\|1 | 1.5 | exact_match |  | 2 | 100 | 0.1250 ± 0.0500 | 0.7500 | higher |"
    plain = metrics(measured)["evaluation"]["harness"]
    assert (plain["version"], plain["limit"], plain["chat_template"]) == ("0.4.13", 100, False)
    assert plain["metrics"][0]["tuned"] == 0.75 and plain["metrics"][0]["tuned_stderr"] is None


def test_generated_text_is_escaped_in_table_cell(export_input: ExportInput) -> None:
    table = report(export_input).split("## Sample Outputs\n")[1].split("\n\n")[0].splitlines()
    assert table[0] == "| Instruction | Expected | Model Output |"
    assert len(table) == 3
    assert table[2].replace("\\|", "").count("|") == 4
    assert "![x](" not in table[2]
    assert "<script" not in table[2].replace("\\<", "")
    assert len(table[2]) < 400


def test_report_and_card_name_what_a_promoted_model_has_lost(export_input: ExportInput) -> None:
    """The gate may not be about it, and the figure in the table is one of many."""
    assert "Regression shown" not in report(export_input)
    export_input.evaluation.gate.decision = GateDecision.GATE_DECISION_PROMOTE
    export_input.evaluation.shown_regression = "Its loss on the regression set is 2.1, that of tiny 1.1."
    lines = report(export_input).splitlines()
    at = lines.index("Gate: **PROMOTE**")
    assert "**Regression shown:** Its loss on the regression set is 2.1" in lines[at + 2]
    assert "**Regression shown:** Its loss on the regression set" in model_card(export_input)
    assert metrics(export_input)["evaluation"]["shown_regression"] == export_input.evaluation.shown_regression


def test_report_compares_speed_and_memory_with_the_estimate(export_input: ExportInput) -> None:
    """Otherwise a user would have to guess whether a larger job fits."""
    export_input.training.train_tokens_per_second = 900.0
    export_input.training.peak_memory_bytes = 3 * 2**30
    assert "- Speed: 900 tokens/s" in report(export_input).splitlines()
    estimate = export_input.preflight.estimate
    estimate.tokens_per_second, estimate.memory_total_bytes, estimate.memory_upper_bytes = 1000.0, 2**31, 2**32
    lines = report(export_input).splitlines()
    assert "- Speed: 900 tokens/s, 0.90 times the estimate" in lines
    assert "- Peak memory: 3.00 GiB (estimate: 2.00 GiB, at most 4.00 GiB)" in lines
    estimate.world_size = 2
    assert "- Peak memory: 3.00 GiB in 2 processes (estimate: 4.00 GiB, at most 8.00 GiB)" in report(export_input)
    export_input.training.peak_gpu_memory_bytes = 2**30
    assert "- Peak memory: 1.00 GiB on the GPU (estimate: 2.00 GiB, at most 4.00 GiB)" in report(export_input)


def test_report_says_what_kind_of_adapter_is_packed(export_input: ExportInput) -> None:
    """PiSSA's has twice the rank that was trained, and DoRA's loads in fewer servers."""
    lora = export_input.config.lora.model_copy(update={"use_dora": True, "init_lora_weights": "pissa_niter_4"})
    config = export_input.config.model_copy(update={"lora": lora, "method": "qlora"})
    text = report(export_input.model_copy(update={"config": config}), {"r": 8, "lora_alpha": 16})
    assert "- Method: QLoRA (4 bits, nf4, DoRA, PiSSA)" in text.splitlines()
    assert "- LoRA rank: 4, alpha: 8; saved as an adapter of rank 8, alpha: 16" in text.splitlines()
    config = config.model_copy(update={"method": "full"})
    text = report(export_input.model_copy(update={"config": config}))
    assert "- Method: full (every weight)" in text.splitlines()


@pytest.mark.parametrize(
    ("eval_loss", "verdict"), [(2.7, "no sign of overfitting"), (3.7, "some overfitting"), (3.9, "fewer epochs")]
)
def test_report_says_whether_the_model_learned_its_rows_by_heart(
    export_input: ExportInput, eval_loss: float, verdict: str
) -> None:
    export_input.training.final_eval_loss = eval_loss
    line = next(line for line in report(export_input).splitlines() if line.startswith("- Eval loss above"))
    assert verdict in line


def test_report_of_a_model_that_is_worse_than_its_base_has_no_good_news(export_input: ExportInput) -> None:
    """A training that diverged has a small gap between its two losses."""
    export_input.training.final_eval_loss = export_input.training.final_train_loss - 3
    export_input.evaluation.tuned_loss = export_input.evaluation.base_loss + 10
    line = next(line for line in report(export_input).splitlines() if line.startswith("- Eval loss above"))
    assert "no sign of overfitting" not in line and "worse than its base model" in line


@pytest.mark.parametrize(
    ("first", "words"),
    [("ft:ftjob_1@5", "which was trained from the base model"), ("ds_1", "which was made elsewhere and uploaded")],
)
def test_report_says_what_the_training_started_from(export_input: ExportInput, first: str, words: str) -> None:
    lineage = [
        AdapterBelow(start_from="ft:ftjob_2@7", start_mode="new", manifest_sha256="0" * 64),
        AdapterBelow(start_from=first, start_mode="continue", manifest_sha256="0" * 64),
    ]
    job = export_input.job.model_copy(update={"lineage": lineage})
    line = next(
        line for line in report(export_input.model_copy(update={"job": job})).splitlines() if "- Model:" in line
    )
    assert line == f"- Model: a new adapter on top of `ft:ftjob_2@7`, itself further training of `{first}`, {words}"


def test_report_marks_missing_measurements(export_input: ExportInput) -> None:
    export_input.training.ClearField("best_eval_loss")
    export_input.training.ClearField("final_eval_loss")
    for field in ("base_loss", "tuned_loss", "samples"):
        export_input.evaluation.ClearField(field)
    # Without held-out rows, what was lost and critical questions are measured, and the gate decides.
    assert "Gate: **REJECT**" in report(export_input)
    export_input.evaluation.ClearField("metrics")
    text = report(export_input)
    assert "- Final eval loss: not measured" in text
    assert "- Perplexity: not measured" in text
    assert "- Eval loss above train loss: not measured" in text
    assert "No samples were generated." in text
    assert "were not measured on held-out rows" in text


def test_plot_shows_the_curves(tmp_path: Path) -> None:
    train = [Point(step, 4 - step / 20) for step in range(1, 40)]
    evaluation = [Point(10, 3.6), Point(20, 3.2), Point(30, 3.3)]
    draw_losses(tmp_path / "both.png", "a $ title_x", train, evaluation, 20)
    draw_losses(tmp_path / "none.png", "a $ title_x", [], [], 0)
    both, none = _pixels(tmp_path / "both.png"), _pixels(tmp_path / "none.png")
    blue, red = bytes.fromhex("4477aa"), bytes.fromhex("cc6677")
    assert both.count(blue) > 500
    assert both.count(red) > 300
    assert none.count(blue) == 0


def _pixels(png: Path) -> bytes:
    """RGB bytes of every pixel, decoded independently of what drew it."""
    from PIL import Image

    with Image.open(png) as image:
        assert image.size == (1280, 720)
        return image.convert("RGB").tobytes()
