"""Metrics of answers against the expected ones, by name.

BLEU and chrF are computed by sacrebleu, fuzzy match by rapidfuzz; their versions are part of a metric's signature.
"""

import importlib.metadata
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

import numpy
from numpy.typing import NDArray

from engine.config.metrics import CONTAINS_PREFIX, REGEX_PREFIX
from engine.evaluation.texts import json_value, last_number, normalized, same_json, tool_calls, words


@dataclass(frozen=True)
class CorpusMetric:
    """A metric of all rows together: counts of each row are summed, and the sum has a score."""

    counts: Callable[[Sequence[str], Sequence[str]], NDArray[numpy.float64]]
    """(answers, expected) → counts, [rows, counts of one row]."""
    score: Callable[[NDArray[numpy.float64]], float]
    """Summed counts → score."""


OneAnswer = Callable[[str, str], float | None]
"""(answer, expected) → value; None if the row has none, such as no expected answer."""
_REGEX_SECONDS: Final = 1.0
_AROUND_LABELS: Final = " \t.,;:!?\"'`()[]*“”„‘’«»"
_RELATIVE: Final = 1e-6
_NO_VALUE: Final = None


@dataclass(frozen=True)
class AnswerMetric:
    """A metric of answers."""

    name: str
    of_row: OneAnswer
    higher_is_better: bool = True
    is_right_or_wrong: bool = False
    """True if the value of a row is 0 or 1."""
    corpus: CorpusMetric | None = None
    """Computes the value over all rows where that is not the mean of the rows."""
    signature: str = ""
    has_direction: bool = True
    """False if neither higher nor lower values are better."""


def answer_metric(name: str, json_schema: Mapping[str, Any] | None = None) -> AnswerMetric:
    """Returns the metric of that name. Raises KeyError for an unknown one."""
    if name.startswith(CONTAINS_PREFIX):
        return _right(name, partial(_contains_text, name.removeprefix(CONTAINS_PREFIX)))
    if name.startswith(REGEX_PREFIX):
        return _right(name, partial(_matches, name.removeprefix(REGEX_PREFIX)), signature=f"regex {_version('regex')}")
    if name == "json_schema":
        check = partial(_fits_schema, _validator(json_schema or {}))
        return _right(name, check, signature=f"jsonschema {_version('jsonschema')}, draft 2020-12")
    if name.startswith("rouge_"):
        return AnswerMetric(name, partial(rouge, name), signature="F1, words of any script")
    if name in ("bleu", "chrf"):
        return AnswerMetric(
            name,
            partial(_of_sentence, name),
            corpus=CorpusMetric(partial(_corpus_counts, name), partial(_corpus_score, name)),
            signature=_sacrebleu_signature(name),
        )
    if name == "fuzzy_match":
        return AnswerMetric(name, fuzzy_match, signature=f"rapidfuzz {_version('rapidfuzz')}, ratio")
    return _SIMPLE[name]


def rouge(name: str, answer: str, expected: str) -> float | None:
    """Returns the F1 of rouge_1 to rouge_5 or rouge_l over the words of any script. Range [0, 1].

    Source: Lin 2004. The values are those of rouge-score with this tokenizer; its own one drops every letter that is
    not Latin, and the package comes without a wheel, which images require.
    """
    if not expected.strip():
        return _NO_VALUE
    ours, theirs = words(answer), words(expected)
    if name == "rouge_l":
        from rapidfuzz.distance import LCSseq

        return _f1(LCSseq.similarity(ours, theirs), len(ours), len(theirs))
    size = int(name.removeprefix("rouge_"))
    counted, wanted = _ngrams(ours, size, size), _ngrams(theirs, size, size)
    return _f1((counted & wanted).total(), counted.total(), wanted.total())


def sentence_bleu(answer: str, expected: str) -> float:
    """Returns the BLEU of one answer, with effective order, in [0, 1]."""
    return float(_sacrebleu("bleu", True).sentence_score(answer, [expected]).score) / 100


def gleu(answer: str, expected: str) -> float:
    """Returns the Google-BLEU of one answer: the lower of precision and recall over n-grams of 1 to 4 words.

    Source: Wu et al. 2016, arXiv 1609.08144, section 7. Range [0, 1].
    """
    ours, theirs = _ngrams(words(answer), 1, 4), _ngrams(words(expected), 1, 4)
    longer = max(ours.total(), theirs.total())
    return (ours & theirs).total() / longer if longer else 0.0


def fuzzy_match(answer: str, expected: str) -> float | None:
    """Returns rapidfuzz's normalised similarity of insertions and deletions. Range [0, 1]."""
    from rapidfuzz import fuzz

    return fuzz.ratio(answer, expected) / 100 if expected.strip() else _NO_VALUE


def label_of(text: str) -> str:
    """Returns the label that an answer names: its first line, case-folded, without punctuation at its ends."""
    lines = text.strip().splitlines()
    folded = unicodedata.normalize("NFKC", lines[0]).casefold() if lines else ""
    return folded.strip(_AROUND_LABELS)


def _right(name: str, of_row: OneAnswer, signature: str = "") -> AnswerMetric:
    return AnswerMetric(name, of_row, is_right_or_wrong=True, signature=signature)


def _where_expected(check: Callable[[str, str], bool]) -> OneAnswer:
    return lambda answer, expected: float(check(answer, expected)) if expected.strip() else _NO_VALUE


def _token_f1(answer: str, expected: str) -> float | None:
    if not expected.strip():
        return _NO_VALUE
    ours, theirs = Counter(words(answer)), Counter(words(expected))
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def _same_last_number(answer: str, expected: str) -> float | None:
    right = last_number(expected)
    if right is None:
        return _NO_VALUE
    given = last_number(answer)
    return float(given is not None and abs(given - right) <= _RELATIVE * max(1.0, abs(right)))


def _same_json(answer: str, expected: str) -> float | None:
    is_json, right = json_value(expected)
    if not is_json:
        return _NO_VALUE
    given_is_json, given = json_value(answer)
    return float(given_is_json and same_json(given, right))


def _same_calls(answer: str, expected: str, *, arguments: bool) -> float | None:
    right = tool_calls(expected)
    if not right:
        return _NO_VALUE
    given = tool_calls(answer)
    same = [name for name, _ in given] == [name for name, _ in right]
    if arguments:
        same = same and all(same_json(ours, theirs) for (_, ours), (_, theirs) in zip(given, right, strict=True))
    return float(same)


def _contains_text(wanted: str, answer: str, expected: str) -> float:
    return float(wanted in answer)


def _matches(pattern: str, answer: str, expected: str) -> float | None:
    import regex

    try:
        return float(regex.search(pattern, answer, timeout=_REGEX_SECONDS) is not None)
    except TimeoutError:
        # Such an answer is not what the pattern was written for.
        return _NO_VALUE


def _fits_schema(validator: Any, answer: str, expected: str) -> float | None:
    is_json, value = json_value(answer)
    try:
        return float(is_json and validator.is_valid(value))
    except TimeoutError:
        return _NO_VALUE


def _validator(schema: Mapping[str, Any]) -> Any:
    from jsonschema import Draft202012Validator, validators
    from referencing import Registry

    # An empty registry retrieves nothing: a reference to another document is an error.
    return validators.extend(Draft202012Validator, {"pattern": _check_pattern})(schema, registry=Registry())


def _check_pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[Any]:
    """Checks `pattern` as jsonschema does, but within a second."""
    import regex
    from jsonschema import ValidationError

    if isinstance(value, str) and regex.search(pattern, value, timeout=_REGEX_SECONDS) is None:
        yield ValidationError(f"{value[:80]!r} does not match {pattern!r}")


def _of_sentence(name: str, answer: str, expected: str) -> float | None:
    if not expected.strip():
        return _NO_VALUE
    return float(_sacrebleu(name, True).sentence_score(answer, [expected]).score)


def _corpus_counts(name: str, answers: Sequence[str], expected: Sequence[str]) -> NDArray[numpy.float64]:
    # Private, and so bound to sacrebleu's version: a resample of the rows can be scored only from the counts of each.
    return numpy.array(_sacrebleu(name, False)._extract_corpus_statistics(list(answers), [list(expected)]), float)


def _corpus_score(name: str, counts: NDArray[numpy.float64]) -> float:
    return float(_sacrebleu(name, False)._compute_score_from_stats(counts.astype(int).tolist()).score)


@cache
def _sacrebleu(name: str, of_sentence: bool) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    if name == "chrf":
        return CHRF()
    return BLEU(effective_order=True) if of_sentence else BLEU()


def _sacrebleu_signature(name: str) -> str:
    metric = _sacrebleu(name, False)
    # The signature is complete once the metric has scored something.
    metric.corpus_score(["a"], [["a"]])
    return f"sacrebleu {metric.get_signature()}"


def _ngrams(tokens: Sequence[str], shortest: int, longest: int) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(tokens[start : start + size])
        for size in range(shortest, longest + 1)
        for start in range(len(tokens) - size + 1)
    )


def _f1(common: int, num_ours: int, num_theirs: int) -> float:
    return 2 * common / (num_ours + num_theirs) if common else 0.0


def _version(package: str) -> str:
    return importlib.metadata.version(package)


_SIMPLE: Final[Mapping[str, AnswerMetric]] = {
    metric.name: metric
    for metric in (
        _right("exact_match", _where_expected(lambda answer, expected: answer.strip() == expected.strip())),
        _right(
            "normalized_match", _where_expected(lambda answer, expected: normalized(answer) == normalized(expected))
        ),
        _right(
            "contains_expected",
            _where_expected(lambda answer, expected: f" {normalized(expected)} " in f" {normalized(answer)} "),
        ),
        _right("accuracy", _where_expected(lambda answer, expected: label_of(answer) == label_of(expected))),
        _right("last_number", _same_last_number),
        _right("valid_json", lambda answer, expected: float(json_value(answer)[0])),
        _right("json_match", _same_json),
        _right("tool_call_name", partial(_same_calls, arguments=False)),
        _right("tool_call_arguments", partial(_same_calls, arguments=True)),
        AnswerMetric("token_f1", _token_f1),
        AnswerMetric("length_words", lambda answer, expected: float(len(words(answer))), has_direction=False),
    )
}
