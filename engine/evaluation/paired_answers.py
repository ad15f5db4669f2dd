"""Compares two lists of answers to the same rows by one metric."""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.evaluation.answer_metrics import AnswerMetric
from engine.evaluation.comparison import Compared, Corpus, Paired, compared


@dataclass(frozen=True)
class PairedAnswers:
    """The comparison, and the values of each row that has them."""

    compared: Compared
    rows: list[int]
    """Index of each row with a value of both answers."""
    base: list[float]
    tuned: list[float]


def compare_answers(
    metric: AnswerMetric, base: Sequence[str], tuned: Sequence[str], expected: Sequence[str], *, alone: bool = False
) -> PairedAnswers:
    """Compares the answers of two models, row by row. With `alone` there is one, and `base` has its answers too."""
    rows, before, after = [], [], []
    for index, texts in enumerate(zip(base, tuned, expected, strict=True)):
        ours, theirs = (metric.of_row(answer, texts[2]) for answer in texts[:2])
        if ours is not None and theirs is not None:
            rows.append(index)
            before.append(ours)
            after.append(theirs)
    corpus = None
    if metric.corpus is not None and rows:
        wanted = [expected[index] for index in rows]
        counts = (metric.corpus.counts([side[index] for index in rows], wanted) for side in (base, tuned))
        corpus = Corpus(next(counts), next(counts), metric.corpus.score)
    paired = Paired.of(
        metric.name,
        before,
        after,
        higher_is_better=metric.higher_is_better,
        is_right_or_wrong=metric.is_right_or_wrong,
        signature=metric.signature,
        corpus=corpus,
        has_direction=metric.has_direction,
        alone=alone,
    )
    return PairedAnswers(compared(paired), rows, before, after)
