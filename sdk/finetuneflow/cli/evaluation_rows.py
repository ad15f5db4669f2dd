"""`ftf evaluations rows` and `ftf evaluations compare`, and the table of metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer
from rich.console import Console

from finetuneflow.cli.exits import CommandFailed
from finetuneflow.cli.session import Json, not_empty, print_json, print_rows, session, shortened
from finetuneflow.fields import INT32_MAX
from finetuneflow.resources.evaluation import Evaluation, EvaluationRow
from finetuneflow.resources.stage_result import (
    EvaluationResult,
    GateDecision,
    HarnessMetric,
    HarnessResult,
    MetricComparison,
)

_Id = Annotated[str, typer.Argument(metavar="EVALUATION", help="Id of an evaluation.", callback=not_empty)]
_DECISIONS = {
    GateDecision.PROMOTE: ("promoted", "green"),
    GateDecision.REJECT: ("rejected", "red"),
    GateDecision.INCONCLUSIVE: ("inconclusive", "yellow"),
}


def rows(
    ctx: typer.Context,
    evaluation: _Id,
    metric: Annotated[str, typer.Option(help="Only rows with this metric, which --change is about.")] = "",
    change: Annotated[
        str | None, typer.Option(help="Only rows on which the tuned model is improved, worsened or equal.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=INT32_MAX, help="Maximum number of rows.")] = 20,
    json: Json = False,
) -> None:
    """Show held-out rows with both answers, side by side."""
    here = session(ctx)
    listed = here.client.evaluations.rows(evaluation, metric=metric, change=change, limit=limit)
    if json:
        print_json(*(row.proto for row in listed))
        return
    number = 0
    for row in listed:
        number += 1
        _show_row(row, metric or "loss", here.console)
    if not number:
        here.console.print("No such rows.")


def compare(
    ctx: typer.Context,
    first: Annotated[str, typer.Argument(metavar="EVALUATION", help="Id of an evaluation.", callback=not_empty)],
    second: Annotated[str, typer.Argument(metavar="OTHER", help="Id of another one.", callback=not_empty)],
    json: Json = False,
) -> None:
    """Show the metrics of two evaluations side by side."""
    here = session(ctx)
    both = [here.client.evaluations.get(each) for each in (first, second)]
    if json:
        print_json(*(each.proto for each in both))
        return
    for each in both:
        if each.result is None:
            raise CommandFailed(f"Evaluation {each.id} is {each.state}; it has no metrics.")
    headers = ["METRIC", *(f"{each.model} ({each.id})" for each in both)]
    print_rows(here.console, headers, _side_by_side(both))
    if len({each.result.rows_hash for each in both if each.result is not None}) > 1:
        here.console.print("Their rows, prompts, lengths of answers or regression sets differ: values may not compare.")


def show_metrics(result: EvaluationResult, console: Console) -> None:
    """Prints the comparison by each metric, the gate's decision and the findings."""
    if result.metrics and result.single_model:
        print_rows(console, ["METRIC", "VALUE", "ROWS"], map(_value_row, result.metrics))
    elif result.metrics:
        headers = ["METRIC", "BASE", "TUNED", "GAIN", "95 % INTERVAL", "BETTER/WORSE", "CONCLUSION"]
        print_rows(console, headers, map(_metric_row, result.metrics))
    if result.shown_regression:
        console.print(f"Regression  {result.shown_regression}", style="yellow")
    if result.gate is not None and result.gate.decision is not None:
        word, style = _DECISIONS.get(result.gate.decision, (result.gate.decision.lower(), ""))
        console.print(f"Gate        {word}", style=style)
        for each in result.gate.conditions:
            console.print(f"            {each.sentence}")
    if result.questions is not None:
        asked = result.questions
        console.print(
            f"Questions   {asked.num_passed} of {asked.num_questions} passed"
            + f" (base {asked.num_passed_by_base})" * (not result.single_model)
        )
        for failed in asked.failed_must_pass:
            console.print(f"            must pass, and did not: {shortened(failed)}")
    if result.classification is not None:
        labels = result.classification
        base = "" if result.single_model else f"base {labels.base_macro_f1:.4f}, tuned "
        console.print(f"Macro F1    {base}{labels.tuned_macro_f1:.4f}")
    if result.harness is not None:
        _show_harness(result.harness, result.single_model, console)
    if result.num_reused:
        console.print(f"Reused      {result.num_reused:,} losses and answers of earlier evaluations")
    for finding in result.findings:
        console.print(f"Note        {finding}")


def _show_harness(harness: HarnessResult, single_model: bool, console: Console) -> None:
    rows = "all rows" if harness.limit is None else f"at most {harness.limit:,} rows a task"
    template = "with" if harness.chat_template else "without"
    console.print(f"Harness     lm-evaluation-harness {harness.version}, {rows}, {template} chat template")
    values = ["VALUE"] if single_model else ["BASE", "TUNED"]
    shown = (_harness_row(metric, single_model) for metric in harness.metrics)
    print_rows(console, ["TASK", "METRIC", *values, "ROWS", "BETTER IF"], shown)


def _harness_row(metric: HarnessMetric, single_model: bool) -> list[str]:
    sides = ((metric.base, metric.base_stderr), (metric.tuned, metric.tuned_stderr))[single_model:]
    values = [_number(value) + ("" if stderr is None else f" ± {_number(stderr)}") for value, stderr in sides]
    better = "" if metric.higher_is_better is None else "higher" if metric.higher_is_better else "lower"
    name = f"{metric.metric} ({metric.filter})" if metric.filter else metric.metric
    return [metric.task, name, *values, f"{metric.num_rows:,}", better]


def _metric_row(metric: MetricComparison) -> list[str]:
    interval = ""
    if metric.gain_low is not None and metric.gain_high is not None:
        interval = f"[{_signed(metric.gain_low)}, {_signed(metric.gain_high)}]"
    directed = metric.conclusion is not None
    if not metric.num_rows:
        return [metric.name, "not measured", "not measured", "", "", "", ""]
    return [
        metric.name,
        _number(metric.base),
        _number(metric.tuned),
        "" if metric.gain is None else _signed(metric.gain),
        interval,
        f"{metric.num_improved}/{metric.num_worsened} of {metric.num_rows}" if directed else "",
        ", ".join(filter(None, [(metric.conclusion or "").lower().replace("_", " "), _p_value(metric)])),
    ]


def _p_value(metric: MetricComparison) -> str:
    return "" if metric.p_value is None else f"p {metric.p_value:.2g}"


def _value_row(metric: MetricComparison) -> list[str]:
    measured = metric.num_rows or metric.tuned is not None
    return [metric.name, _number(metric.tuned) if measured else "not measured", str(metric.num_rows)]


def _side_by_side(both: Sequence[Evaluation]) -> Iterator[list[str]]:
    found = [{} if each.result is None else {metric.name: metric for metric in each.result.metrics} for each in both]
    for name in dict.fromkeys(name for metrics in found for name in metrics):
        yield [name, *(_number(metrics[name].tuned) if name in metrics else "" for metrics in found)]


def _show_row(row: EvaluationRow, metric: str, console: Console) -> None:
    alone = not row.changes
    losses = (
        f"loss {_number(row.tuned_loss)}" if alone else f"loss {_number(row.base_loss)} -> {_number(row.tuned_loss)}"
    )
    if row.source == "question":
        base, tuned = (
            "passed" if side.get("questions") else "failed" for side in (row.base_metrics, row.tuned_metrics)
        )
        losses = f"critical question: {tuned}" if alone else f"critical question: base {base}, tuned {tuned}"
    change = row.changes.get(metric)
    console.print(f"Row {row.index}  {losses}" + (f"  {metric}: {change.lower()}" if change else ""))
    console.print(f"Prompt      {shortened(row.prompt)}")
    console.print(f"Expected    {shortened(row.expected)}")
    if row.base_answer is not None and row.tuned_answer is not None:
        console.print(f"Base        {shortened(row.base_answer)}")
        console.print(f"Tuned       {shortened(row.tuned_answer)}")
    elif row.tuned_answer is not None:
        console.print(f"Answer      {shortened(row.tuned_answer)}")
    console.print()


def _signed(value: float) -> str:
    return f"{value:+.1e}" if 0 < abs(value) < 5e-5 else f"{value:+.4f}"


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4f}"
