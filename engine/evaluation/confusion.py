"""Confusion matrix of labels, and the F1 scores of it."""

from collections.abc import Sequence

import numpy
from numpy.typing import NDArray


def confusion(labels: Sequence[str], expected: Sequence[str], given: Sequence[str]) -> NDArray[numpy.int64]:
    """Returns counts [expected label, given label]; the last column counts answers that are no label."""
    index = {label: number for number, label in enumerate(labels)}
    counts = numpy.zeros((len(labels), len(labels) + 1), numpy.int64)
    for right, answer in zip(expected, given, strict=True):
        counts[index[right], index.get(answer, len(labels))] += 1
    return counts


def macro_f1(counts: NDArray[numpy.int64]) -> float:
    """Returns the unweighted mean of the labels' F1 scores. Range [0, 1]."""
    right = numpy.diagonal(counts).astype(float)
    either = counts.sum(1) + counts[:, :-1].sum(0)
    return float(numpy.divide(2 * right, either, out=numpy.zeros(len(right)), where=either > 0).mean())
