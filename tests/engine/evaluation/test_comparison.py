"""Gains, intervals and flips of two models, and the decisions of a gate."""

import math
from dataclasses import replace

import numpy
import pytest
from scipy.stats import bootstrap

from engine.config.evaluation import GateCondition
from engine.evaluation.answer_metrics import answer_metric
from engine.evaluation.choice import chosen_metrics, labels
from engine.evaluation.comparison import Corpus, Paired, compared, mcnemar
from engine.evaluation.confusion import confusion, macro_f1
from engine.evaluation.gate import decide
from engine.evaluation.verdicts import LOSS_ROUNDING, is_worse

_LOWER_LOSS = [GateCondition(metric="loss", min_gain=0.0)]


def _losses(gain: float, spread: float = 0.1, rows: int = 60, weights: bool = True) -> Paired:
    random = numpy.random.default_rng(5)
    base = random.normal(2.0, 0.5, rows)
    tuned = base - gain + random.normal(0, spread, rows)
    counted = random.integers(5, 50, rows).astype(float) if weights else None
    return Paired("loss", base, tuned, higher_is_better=False, weights=counted)


def test_interval_is_that_of_a_paired_bootstrap() -> None:
    found = compared(_losses(0.05, weights=False))
    difference = found.paired.base - found.paired.tuned
    reference = bootstrap((difference,), numpy.mean, method="percentile", n_resamples=9999, rng=1).confidence_interval
    interval = found.gain_interval()
    assert interval is not None
    assert interval == pytest.approx((reference.low, reference.high), abs=0.003)
    assert found.gain == pytest.approx(difference.mean())
    assert found.gain_interval() == compared(_losses(0.05, weights=False)).gain_interval(), "the seed is fixed"


def test_rows_weigh_as_their_trained_tokens() -> None:
    """Otherwise a row of one token would count as much as one of a thousand, and the loss differ from training's."""
    paired = Paired("loss", numpy.array([1.0, 3.0]), numpy.array([1.0, 2.0]), False, weights=numpy.array([1.0, 9.0]))
    found = compared(paired)
    assert (found.base, found.tuned) == (pytest.approx(2.8), pytest.approx(1.9))
    perplexity = compared(
        Paired("perplexity", paired.base, paired.tuned, False, weights=paired.weights, exponential=True)
    )
    assert perplexity.tuned == pytest.approx(math.exp(1.9))
    assert found.gain == pytest.approx(0.9) and (found.num_improved, found.num_worsened) == (1, 0)


@pytest.mark.parametrize(("gain", "conclusion"), [(0.2, "BETTER"), (-0.2, "WORSE"), (0.0, "NO_DIFFERENCE_SHOWN")])
def test_conclusion(gain: float, conclusion: str) -> None:
    assert compared(_losses(gain)).conclusion == conclusion


def test_small_sets_say_how_small_an_effect_they_could_have_shown() -> None:
    """A user with 20 rows must not read "no difference" as "equal"."""
    small, large = compared(_losses(0.0, rows=20)), compared(_losses(0.0, rows=2000))
    assert small.detectable_gain is not None and large.detectable_gain is not None
    assert small.detectable_gain == pytest.approx(10 * large.detectable_gain, rel=0.5)
    shown = sum(compared(_losses(small.detectable_gain, rows=20, spread=0.1)).conclusion == "BETTER" for _ in range(1))
    assert shown == 1


@pytest.mark.parametrize(
    ("base", "tuned"),
    [
        ([0, 0], [1, 1]),
        ([0, 0, 0], [1, 1, 1]),
        ([0] * 10, [1] * 4 + [0] * 6),
        ([1] * 6, [0] * 3 + [1] * 3),
        ([0] * 5, [1] * 5),
        ([0] * 8, [1] * 8),
        ([0] * 20 + [1] * 20, [1] * 9 + [0] * 12 + [1] * 19),
    ],
)
def test_right_answers_are_better_only_where_mcnemar_shows_it(base: list[float], tuned: list[float]) -> None:
    """A handful of rows that agree would have a bootstrap interval of no width, and promote any model."""
    found = compared(Paired.of("accuracy", base, tuned, is_right_or_wrong=True))
    assert found.p_value is not None
    assert (found.conclusion != "NO_DIFFERENCE_SHOWN") == (found.p_value < 0.05)


def test_shares_have_exact_intervals() -> None:
    all_right = compared(Paired.of("accuracy", [0] * 10, [1] * 10, is_right_or_wrong=True))
    assert all_right.value_interval() == pytest.approx((0.6915, 1.0), abs=1e-4), "Clopper and Pearson"
    interval = all_right.gain_interval()
    assert interval is not None and 0 < interval[0] < 0.5 and interval[1] == 1
    equal = compared(Paired.of("accuracy", [1] * 20, [1] * 20, is_right_or_wrong=True))
    assert equal.gain_interval() == pytest.approx((-0.1684, 0.1684), abs=1e-4)
    assert equal.detectable_gain is not None and equal.detectable_gain >= 6 / 20
    for rows, decision in ((10, "INCONCLUSIVE"), (400, "PROMOTE")):
        right = compared(Paired.of("accuracy", [0] * rows, [1] * rows, is_right_or_wrong=True))
        assert decide([GateCondition(metric="accuracy", min_value=0.99)], {"accuracy": right})[0] == decision


def test_five_rows_show_nothing() -> None:
    """With five rows, all agree by chance once in sixteen times."""
    values = numpy.arange(5.0)
    found = compared(Paired("loss", values + 1, values, higher_is_better=False, weights=numpy.ones(5)))
    assert (found.gain_interval(), found.value_interval(), found.detectable_gain) == (None, None, None)
    assert found.conclusion == "NO_DIFFERENCE_SHOWN" and found.gain_interval(0.9) is not None


def test_mcnemar_is_the_exact_binomial_test() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(10, 0) == pytest.approx(2 * 0.5**10)
    assert mcnemar(5, 5) == pytest.approx(1.0)
    right = Paired.of("exact_match", [0, 0, 1, None], [1, 1, 0, 1], is_right_or_wrong=True)
    found = compared(right)
    assert (found.num_rows, found.num_improved, found.num_worsened) == (3, 2, 1)
    assert found.p_value == pytest.approx(1.0)


def test_corpus_metric_is_resampled_as_a_corpus() -> None:
    """The BLEU of a corpus is not the mean of the sentences' BLEU, and its interval must contain it."""
    expected = [
        f"the {animal} sat on the {place} number {number}"
        for number in range(20)
        for animal in ("cat", "dog")
        for place in ("mat", "car")
    ]
    tuned = [text if index % 3 else text.replace("sat on the", "was in a") for index, text in enumerate(expected)]
    base = [text.replace("the", "a") for text in expected]
    metric = answer_metric("bleu")
    assert metric.corpus is not None
    counts = [metric.corpus.counts(side, expected) for side in (base, tuned)]
    sentences = [
        [metric.of_row(answer, right) for answer, right in zip(side, expected, strict=True)] for side in (base, tuned)
    ]
    found = compared(Paired.of("bleu", *sentences, corpus=Corpus(*counts, score=metric.corpus.score)))
    interval = found.gain_interval()
    assert found.tuned == pytest.approx(metric.corpus.score(counts[1].sum(0)))
    assert interval is not None and found.gain is not None and interval[0] < found.gain < interval[1]
    assert found.conclusion == "BETTER"


def test_loss_that_is_no_number_is_one_of_the_whole_model() -> None:
    """The mean of the rows that are left would look like a good model."""
    paired = Paired(
        "loss", numpy.array([1.0, 1.0, 1.0]), numpy.array([0.5, math.nan, 0.5]), False, weights=numpy.ones(3)
    )
    found = compared(paired)
    assert found.tuned is None and found.base == 1.0 and found.gain is None
    assert decide(_LOWER_LOSS, {"loss": found})[0] == "REJECT"


@pytest.mark.parametrize(
    ("condition", "decision"),
    [
        ({"metric": "loss", "min_gain": 0.0}, "PROMOTE"),
        ({"metric": "loss", "min_gain": 0.5}, "REJECT"),
        ({"metric": "loss", "min_gain": 0.2}, "INCONCLUSIVE"),
        ({"metric": "loss", "max_value": 10.0}, "PROMOTE"),
        ({"metric": "loss", "max_value": 1.0}, "REJECT"),
        ({"metric": "loss", "min_value": 100.0}, "REJECT"),
        ({"metric": "exact_match", "min_value": 0.5}, "INCONCLUSIVE"),
    ],
)
def test_each_condition_has_an_outcome_and_a_sentence(condition: dict[str, object], decision: str) -> None:
    found, outcomes = decide([GateCondition.model_validate(condition)], {"loss": compared(_losses(0.2))})
    assert found == decision
    assert len(outcomes) == 1 and str(condition["metric"]) in outcomes[0].sentence
    if condition["metric"] == "exact_match":
        assert "not measured on any row" in outcomes[0].sentence


def test_gate_rejects_a_worse_model_promotes_a_better_one_and_does_not_judge_an_equal_one() -> None:
    """The usual gate is a lower loss."""
    for gain, decision in ((0.3, "PROMOTE"), (-0.3, "REJECT"), (0.0, "INCONCLUSIVE")):
        assert decide(_LOWER_LOSS, {"loss": compared(_losses(gain))})[0] == decision
    same = numpy.array([1.0, 2.0, 3.0])
    untouched = compared(Paired("loss", same, same, higher_is_better=False, weights=numpy.ones(3)))
    assert decide(_LOWER_LOSS, {"loss": untouched})[0] == "INCONCLUSIVE"
    one_row = compared(Paired("loss", same[:1], same[:1] - 1, higher_is_better=False, weights=numpy.ones(1)))
    decision, outcomes = decide(_LOWER_LOSS, {"loss": one_row})
    assert decision == "INCONCLUSIVE" and "too few for an interval" in outcomes[0].sentence


def test_loss_that_differs_by_rounding_is_no_difference() -> None:
    """An adapter that has learnt nothing moves all losses a little in one direction, however many rows there are."""
    base = numpy.linspace(2, 4, 50)
    weights = numpy.ones(50)
    for exponential in (False, True):
        found = compared(
            Paired(
                "loss", base, base + 3e-6, higher_is_better=False, weights=weights, exponential=exponential,
                rounding=LOSS_ROUNDING,
            )
        )  # fmt: skip
        assert found.conclusion == "NO_DIFFERENCE_SHOWN"
        decision, outcomes = decide([GateCondition(metric="loss", min_gain=0.0)], {"loss": found})
        assert decision == "INCONCLUSIVE" and "may come from the arithmetic" in outcomes[0].sentence
        worse = replace(found.paired, tuned=base + 3e-3)
        assert compared(worse).conclusion == "WORSE"
        assert decide([GateCondition(metric="loss", min_gain=0.0)], {"loss": compared(worse)})[0] == "REJECT"


def test_base_model_without_a_loss_says_nothing_about_the_tuned_one() -> None:
    """A broken base model must not reject a good tuned one: there is nothing to compare with."""
    before = numpy.tile([1.0, math.nan, 3.0, 2.0], 3)
    after = numpy.tile([1.0, 2.0, 1.5, 1.0], 3)
    found = compared(Paired("loss", before, after, False, weights=numpy.ones(12)))
    decision, outcomes = decide(_LOWER_LOSS, {"loss": found})
    assert decision == "INCONCLUSIVE" and "compared with is not a finite number" in outcomes[0].sentence
    assert (found.base, found.tuned) == (None, 1.375)
    bounds = [GateCondition(metric="loss", max_value=3.0), GateCondition(metric="loss", max_value=0.5)]
    assert [each.decision for each in decide(bounds, {"loss": found})[1]] == ["PROMOTE", "REJECT"], "of its own value"
    huge = numpy.array([800.0, 800.0])
    with numpy.errstate(all="ignore"):
        perplexity = compared(Paired("perplexity", huge, huge - 799, False, weights=numpy.ones(2), exponential=True))
    condition = [GateCondition(metric="perplexity", min_gain=0.0)]
    assert decide(condition, {"perplexity": perplexity})[0] == "INCONCLUSIVE"
    both = compared(Paired("loss", before, before, False, weights=numpy.ones(12)))
    assert decide(_LOWER_LOSS, {"loss": both})[0] == "REJECT", "a tuned model without a loss is broken"
    assert [is_worse(*each) for each in ((1.0, math.nan), (math.nan, 1.0), (2.0, 1.0), (1.0, 1.0))] == [
        *(False, True, True, False)
    ]


def test_one_failing_condition_rejects() -> None:
    conditions = [
        GateCondition(metric="loss", min_gain=0.0),
        GateCondition(metric="loss", min_gain=0.2),
        GateCondition(metric="loss", max_value=0.1),
    ]
    decision, outcomes = decide(conditions, {"loss": compared(_losses(0.2))})
    assert decision == "REJECT"
    assert [each.decision for each in outcomes] == ["PROMOTE", "INCONCLUSIVE", "REJECT"]
    assert decide(conditions[:2], {"loss": compared(_losses(0.2))})[0] == "INCONCLUSIVE"


@pytest.mark.parametrize(
    ("expected", "chosen"),
    [
        (["", " "], []),
        (["positive", "negative", "neutral"] * 5, ["accuracy"]),
        ([f"Work: {n} + 1.\n#### {n + 1}" for n in range(20)], ["last_number", "rouge_l"]),
        ([str(n * 7) for n in range(20)], ["last_number"]),
        ([f'{{"name": "n{n}"}}' for n in range(20)], ["valid_json", "json_match", "fuzzy_match"]),
        ([f'{{"name": "f{n}", "arguments": {{}}}}' for n in range(20)], ["tool_call_name", "tool_call_arguments"]),
        ([f"Town number {n}" for n in range(20)], ["exact_match", "normalized_match", "token_f1", "chrf"]),
        (
            [f"A long text about the number {n}, " + "with many words in it, " * 5 for n in range(20)],
            ["token_f1", "rouge_1", "rouge_2", "rouge_l", "bleu", "chrf"],
        ),
    ],
)
def test_metrics_are_chosen_by_the_expected_answers(expected: list[str], chosen: list[str]) -> None:
    assert chosen_metrics(expected) == chosen


def test_labels_are_few_short_and_repeated() -> None:
    assert labels(["Yes", "no", "yes."] * 4) == ["no", "yes"]
    assert labels(["a", "b", "c", "d"]) == [], "each occurs once"
    assert labels(["1", "2"] * 10) == [], "numbers are not labels"


def test_macro_f1_weighs_all_labels_alike() -> None:
    expected = ["a"] * 8 + ["b"] * 2
    counts = confusion(["a", "b"], expected, ["a"] * 9 + ["something else"])
    assert counts.tolist() == [[8, 0, 0], [1, 0, 1]]
    assert macro_f1(counts) == pytest.approx((2 * 8 / 17 + 0) / 2)
