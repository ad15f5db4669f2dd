"""Compares both models by every metric, or measures one, and fills the result: comparisons, gate, labels, findings."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy

from chassis.child.pipe import EventSink
from engine.config.evaluation import Evaluation, GateCondition
from engine.config.graders import CompareModel, Grader, grader, judges
from engine.config.metrics import (
    GRADER_PREFIX,
    LOSS,
    MEASURED_ALWAYS,
    MUST_PASS,
    PERPLEXITY,
    QUESTIONS,
    REGEX_PREFIX,
    REGRESSION_LOSS,
)
from engine.evaluation.answer_metrics import AnswerMetric, answer_metric, label_of
from engine.evaluation.choice import chosen_metrics, labels
from engine.evaluation.comparison import Compared, Paired, compared
from engine.evaluation.confusion import confusion, macro_f1
from engine.evaluation.gate import REJECT, decide, figure
from engine.evaluation.graders import Ask, Problems, Sample, grades, preferred
from engine.evaluation.paired_answers import compare_answers
from engine.evaluation.questions import PASS_GRADE, CriticalQuestion
from engine.evaluation.verdicts import LOSS_ROUNDING, is_worse
from engine.perplexity import perplexity
from finetuneflow.v1.event_pb2 import Warning
from finetuneflow.v1.stage_result_pb2 import (
    Classification,
    ConditionResult,
    EvaluationResult,
    GateResult,
    MetricComparison,
    QuestionsResult,
    Regression,
)
from services.evaluator.worker.child_input import Side
from services.evaluator.worker.measurements import RowLoss
from services.evaluator.worker.rows import MeasuredRow, question_row

_SHOWN = 200
"""Characters of a listed question."""
_LISTED = 20


class Compare:
    """The comparison of one evaluation."""

    def __init__(
        self,
        evaluation: Evaluation,
        rows: Sequence[MeasuredRow],
        ask: Ask,
        sink: EventSink,
        sides: tuple[Side | None, Side],
    ) -> None:
        """`ask` asks a judge; `sides` are the model that is compared with, None if only one is measured, and the one
        that the evaluation is about."""
        against, about = sides
        self._names = "" if against is None else against.id, about.id
        self._alone = against is None
        self._is_tuning = against is not None and against.checkpoint is None and about.checkpoint is not None
        self._evaluation = evaluation
        self.rows = [*rows]
        """Held-out rows, then critical questions."""
        self._rows = rows
        self._ask = ask
        self._sink = sink
        self._findings: list[str] = []
        self._more: list[Compared] = []
        self._questions: QuestionsResult | None = None
        self._regression: Regression | None = None
        self._shown_regression = ""
        self._answered = [row for row in rows if row.tuned_answer is not None and row.text.has_question]

    def add_questions(
        self,
        questions: Sequence[CriticalQuestion],
        prompts: Sequence[str],
        before: Sequence[str] | None,
        after: Sequence[str],
    ) -> None:
        """Grades the answers to critical questions: of the base model `before`, of the tuned one `after`."""
        if not questions:
            return
        problems = Problems()
        made = []
        for number, (question, prompt, answer) in enumerate(zip(questions, prompts, after, strict=True)):
            base_answer = None if before is None else before[number]
            base_passed = None if base_answer is None else self._passed(question, base_answer, problems)
            passed = self._passed(question, answer, problems)
            row = question_row(len(self.rows), question, prompt, (base_answer, answer), (base_passed, passed))
            made.append(row)
            self.rows.append(row)
        for name in (QUESTIONS, MUST_PASS):
            tuned = [row.tuned_metrics[name] for row in made if name in row.tuned_metrics]
            base = [row.base_metrics[name] for row in made if name in row.base_metrics]
            options = {"is_right_or_wrong": True, "is_sample": False, "alone": self._alone}
            self._more.append(compared(Paired.of(name, tuned if self._alone else base, tuned, **options)))
        must = [row for row in made if MUST_PASS in row.tuned_metrics]
        failed = [row.text.instruction for row in must if not row.tuned_metrics[MUST_PASS]]
        self._questions = QuestionsResult(
            num_questions=len(made),
            num_passed=sum(row.tuned_metrics[QUESTIONS] == 1 for row in made),
            num_passed_by_base=sum(row.base_metrics.get(QUESTIONS) == 1 for row in made),
            num_must_pass=len(must),
            failed_must_pass=[text[:_SHOWN] for text in failed[:_LISTED]],
        )
        for path, count in problems.missing.items():
            self._findings.append(f"Critical questions: {count:,} grades are 0, because their rows have no {path}.")
        if problems.unreadable:
            self._findings.append(
                f"Critical questions: {problems.unreadable:,} answers of a judge had no grade: not passed."
            )

    def _passed(self, question: CriticalQuestion, answer: str, problems: Problems) -> float:
        grades_of = (self._grades(read, question, answer, problems) for read in question.graders)
        return float(all((grade or 0.0) >= PASS_GRADE for found in grades_of for grade in found))

    def add_regression(self, before: Sequence[RowLoss] | None, after: Sequence[RowLoss], finding: str) -> None:
        """Compares the losses on the regression set; `finding` says why there are none."""
        if finding:
            self._findings.append(finding)
        if not after:
            return
        found = compared(_paired_losses(REGRESSION_LOSS, before, after))
        tuned_loss = _mean_loss(after)
        self._more.append(found)
        self._regression = Regression(
            name=self._evaluation.regression,
            base_loss=0.0 if before is None else _mean_loss(before),
            tuned_loss=tuned_loss,
            num_rows=len(after),
        )
        if before is not None and found.conclusion == "WORSE":
            against, name = self._names
            lost = said = (
                f"Its loss on the regression set ({self._evaluation.regression}, {len(after):,} rows) is "
                f"{tuned_loss:.4f}, that of {against} {_mean_loss(before):.4f}."
            )
            if self._is_tuning:
                said = (
                    f"The model has lost something. {said} A lower learning rate, fewer epochs, or a part of general "
                    "rows in the training data loses less."
                )
            self._findings.append(said if self._is_tuning else f"{name} knows less. {said}")
            if all(condition.metric != REGRESSION_LOSS for condition in self._evaluation.gate):
                self._shown_regression = f"{lost} No condition of the gate is about it."

    def _grades(self, read: Grader, question: CriticalQuestion, answer: str, problems: Problems) -> list[float | None]:
        return grades(read, [Sample(question.item, answer)], self._ask, problems)

    def result(self, as_trained: Sequence[RowLoss] | None) -> EvaluationResult:
        """Returns the result, and adds each metric to the rows. `as_trained` are losses on the quantized weights."""
        result = EvaluationResult(num_answered=len(self._answered), single_model=self._alone)
        comparisons = [*self._losses(), *self._of_answers(), *self._of_graders(), *self._more]
        if self._questions is not None:
            result.questions.CopyFrom(self._questions)
        result.shown_regression = self._shown_regression
        if self._regression is not None:
            result.regression.CopyFrom(self._regression)
        measured = {each.paired.name: each for each in comparisons}
        result.metrics.extend(map(_message, measured.values()))
        if self._rows:
            self._fill_losses(result, as_trained)
            self._fill_classification(result)
            result.findings.extend(_findings(measured, len(self._rows), len(self._answered)))
        result.findings.extend(self._findings)
        if not (conditions := self._gate()):
            return result
        decision, outcomes = decide(conditions, measured)
        said = [ConditionResult(sentence=each.sentence, outcome=f"GATE_DECISION_{each.decision}") for each in outcomes]
        result.gate.CopyFrom(GateResult(decision=f"GATE_DECISION_{decision}", conditions=said))
        if decision == REJECT:
            failed = " ".join(each.sentence for each in outcomes if each.decision == REJECT)
            advice = "Do not serve it before you have read the conditions in the evaluation's result."
            self._sink.emit(
                Warning(reason="GATE_REJECTED", message=f"The gate rejects the model: {failed}", advice=advice)
            )
        if self._is_tuning and self._rows and is_worse(result.tuned_loss, result.base_loss):
            self._sink.emit(_worse(result))
        return result

    def _gate(self) -> list[GateCondition]:
        """Returns the conditions, by default a lower loss if two models are compared; questions that must pass are one
        in any case."""
        found = [*self._evaluation.gate]
        if not found and self._rows and not self._alone:
            found.append(GateCondition(metric=LOSS, min_gain=0.0))
        must_pass = self._questions is not None and self._questions.num_must_pass
        if must_pass and all(condition.metric != MUST_PASS for condition in found):
            found.append(GateCondition(metric=MUST_PASS, min_value=1.0))
        return found

    def _losses(self) -> list[Compared]:
        if not self._rows:
            return []
        before = None if self._alone else self._base_losses()
        sides = before, [row.tuned_loss for row in self._rows]
        return [compared(_paired_losses(LOSS, *sides)), compared(_paired_losses(PERPLEXITY, *sides, exponential=True))]

    def _base_losses(self) -> list[RowLoss]:
        return [row.base_loss for row in self._rows if row.base_loss is not None]

    @property
    def _expected(self) -> list[str]:
        """Expected answers of all held-out rows, those that were not answered too: they decide what is measured."""
        return [row.text.expected_output for row in self._rows if row.text.has_question]

    def _of_answers(self) -> list[Compared]:
        if not self._answered:
            return []
        names = self._evaluation.metrics or chosen_metrics(self._expected)
        if self._evaluation.json_schema is not None:
            names = [*names, "json_schema"]
        measured_otherwise = (*MEASURED_ALWAYS, *names)
        wanted = (condition.metric for condition in self._evaluation.gate)
        names = [*names, *(name for name in wanted if name not in measured_otherwise and GRADER_PREFIX not in name)]
        names = list(dict.fromkeys(names))
        return [self._compared(answer_metric(name, self._evaluation.json_schema)) for name in names]

    def _compared(self, metric: AnswerMetric) -> Compared:
        tuned = [row.tuned_answer or "" for row in self._answered]
        base = tuned if self._alone else [row.base_answer or "" for row in self._answered]
        expected = [row.text.expected_output for row in self._answered]
        found = compare_answers(metric, base, tuned, expected, alone=self._alone)
        directions = {"higher_is_better": metric.higher_is_better, "has_direction": metric.has_direction}
        for index, before, after in zip(found.rows, found.base, found.tuned, strict=True):
            self._answered[index].note(metric.name, None if self._alone else before, after, **directions)
        if metric.name.startswith(REGEX_PREFIX) and len(found.rows) < len(base):
            number = len(base) - len(found.rows)
            self._findings.append(f"{metric.name}: {number:,} rows were not counted: the pattern took too long.")
        return found.compared

    def _of_graders(self) -> Iterator[Compared]:
        """Yields the comparison by each grader."""
        base = [Sample(row.text.values, row.base_answer or "") for row in self._answered if not self._alone]
        tuned = [Sample(row.text.values, row.tuned_answer or "") for row in self._answered]
        for read in map(grader, self._evaluation.graders if self._answered else ()):
            problems = Problems()
            if isinstance(read, CompareModel):
                after = preferred(read, base, tuned, self._ask, problems)
                before: list[float | None] = [None if value is None else 1 - value for value in after]
            else:
                # The base model first, as its answers may be known from earlier evaluations.
                before = grades(read, base, self._ask, problems) if base else []
                after = grades(read, tuned, self._ask, problems)
                before = after if self._alone else before
            name = f"{GRADER_PREFIX}{read.name}"
            for row, ours, theirs in zip(self._answered, before, after, strict=True):
                if ours is not None and theirs is not None:
                    row.note(name, None if self._alone else ours, theirs, higher_is_better=True, has_direction=True)
            self._findings += _grading_findings(read, problems)
            is_binary = all(value in (0.0, 1.0, None) for value in (*before, *after))
            yield compared(Paired.of(name, before, after, is_right_or_wrong=is_binary, alone=self._alone))

    def _fill_losses(self, result: EvaluationResult, as_trained: Sequence[RowLoss] | None) -> None:
        result.num_examples = len(self._rows)
        result.num_trained_tokens = sum(row.tuned_loss.num_trained for row in self._rows)
        sides = {"tuned": [row.tuned_loss for row in self._rows]}
        if not self._alone:
            sides["base"] = self._base_losses()
        for side, losses in sides.items():
            mean = _mean_loss(losses)
            setattr(result, f"{side}_loss", mean)
            setattr(result, f"{side}_perplexity", perplexity(mean))
        if as_trained is not None:
            result.quantized_loss = _mean_loss(as_trained)

    def _fill_classification(self, result: EvaluationResult) -> None:
        expected = [label_of(row.text.expected_output) for row in self._answered]
        names = labels(self._expected)
        if not names or not any(metric.name == "accuracy" for metric in result.metrics):
            return
        found = Classification(labels=names)
        for side in ("tuned",) if self._alone else ("base", "tuned"):
            given = [label_of(getattr(row, f"{side}_answer")) for row in self._answered]
            counts = confusion(names, expected, given)
            getattr(found, f"{side}_confusion").extend(counts.flatten().tolist())
            setattr(found, f"{side}_macro_f1", macro_f1(counts))
        result.classification.CopyFrom(found)


def _grading_findings(read: Grader, problems: Problems) -> Iterator[str]:
    for path, count in problems.missing.items():
        yield f"Grader {read.name}: {count:,} answers were not graded, because their rows have no {path}."
    if problems.unreadable:
        yield f"Grader {read.name}: {problems.unreadable:,} answers of its judge had no grade and were not counted."
    if problems.compared:
        share = problems.agreed / problems.compared
        yield f"Grader {read.name}: its judge chose the same answer in both orders for {share:.0%} of the rows."
    for judge in judges(read):
        if judge.sampling_params.temperature:
            temperature = judge.sampling_params.temperature
            yield f"Grader {read.name}: its judge answered greedily, not with temperature {temperature:g}."


def _paired_losses(
    name: str, before: Sequence[RowLoss] | None, after: Sequence[RowLoss], *, exponential: bool = False
) -> Paired:
    """Losses of rows, which weigh as their trained tokens. `before` is None if only one model was measured."""
    return Paired(
        name,
        numpy.array([row.loss for row in (after if before is None else before)]),
        numpy.array([row.loss for row in after]),
        higher_is_better=False,
        weights=numpy.array([float(row.num_trained) for row in after]),
        exponential=exponential,
        rounding=LOSS_ROUNDING,
        alone=before is None,
    )


def _mean_loss(losses: Sequence[RowLoss]) -> float:
    return math.fsum(each.loss_sum for each in losses) / sum(each.num_trained for each in losses)


def _message(found: Compared) -> MetricComparison:
    paired, interval = found.paired, found.gain_interval()
    message = MetricComparison(
        name=paired.name,
        higher_is_better=paired.higher_is_better,
        base=found.base,
        tuned=found.tuned,
        confidence=0.95,
        num_rows=found.num_rows,
        signature=paired.signature,
    )
    if not paired.has_direction or paired.alone:
        return message
    message.num_improved, message.num_worsened = found.num_improved, found.num_worsened
    message.MergeFrom(MetricComparison(conclusion=f"CONCLUSION_{found.conclusion}"))
    for name, value in (("gain", found.gain), ("p_value", found.p_value), ("detectable_gain", found.detectable_gain)):
        if value is not None:
            setattr(message, name, value)
    if interval is not None:
        message.gain_low, message.gain_high = interval
    return message


def _findings(measured: Mapping[str, Compared], num_rows: int, num_answered: int) -> list[str]:
    found = []
    if 0 < num_answered < num_rows:
        found.append(f"{num_answered:,} of {num_rows:,} held-out rows were answered, drawn by the job's seed.")
    loss = measured[LOSS]
    if not loss.paired.alone and loss.conclusion == "NO_DIFFERENCE_SHOWN" and loss.detectable_gain is not None:
        found.append(
            f"No difference in loss is shown: {num_rows:,} rows like these show a gain of "
            f"{figure(loss.detectable_gain)} nats per token with a probability of 80 %. "
            "More held-out rows show smaller ones."
        )
    return found


def _worse(result: EvaluationResult) -> Warning:
    message = (
        f"The tuned model is worse than its base model: its loss on the held-out rows is {result.tuned_loss:.4f}, "
        f"that of the base model {result.base_loss:.4f}."
    )
    advice = (
        "Do not serve it. Lower hyperparameters.learning_rate, or check that the held-out rows are like the others."
    )
    return Warning(reason="TUNED_MODEL_WORSE", message=message, advice=advice)
