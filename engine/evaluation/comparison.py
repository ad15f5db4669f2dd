"""Compares two models by one metric: gain, interval, flips, and what the number of rows can show. Or measures one.

Intervals are percentiles of a paired bootstrap over rows with a fixed seed (Efron and Tibshirani 1993, chapter 13).
Those of answers that are right or wrong are exact: resampled rows that agree would have an interval of no width,
however few they are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy
from numpy.typing import NDArray

CONFIDENCE: Final = 0.95
_RESAMPLES: Final = 9999
_POWER_Z: Final = 0.8416
"""Quantile of the normal distribution at a power of 0.8."""
_CORPUS_RESAMPLES: Final = 1000
_BLOCK_VALUES: Final = 4_000_000
"""Values that are resampled at a time, which bounds the memory."""
_SEED: Final = 0
Floats = NDArray[numpy.float64]


@dataclass(frozen=True)
class Corpus:
    """Counts of each row, [rows, counts], whose sum has a score."""

    base: Floats
    tuned: Floats
    score: Callable[[Floats], float]


@dataclass(frozen=True)
class Paired:
    """Values of both models on the same rows, NaN where a row has none."""

    name: str
    base: Floats
    tuned: Floats
    higher_is_better: bool = True
    is_right_or_wrong: bool = False
    """True if all values are 0 or 1."""
    weights: Floats | None = None
    """Weight of each row in the mean, such as its number of trained tokens. None: all rows weigh the same."""
    exponential: bool = False
    """True if the value over all rows is exp(mean), as for a perplexity."""
    corpus: Corpus | None = None
    """Given if the value over all rows is not a mean, as of BLEU."""
    signature: str = ""
    has_direction: bool = True
    """False if neither higher nor lower values are better."""
    is_sample: bool = True
    """False if the rows are all that is asked, as critical questions are: then the values are exact."""
    rounding: float = 0.0
    """Differences up to this may come from the arithmetic and are none; for an exponential value as a share of it."""
    alone: bool = False
    """True if only one model was measured. `base` has its values too then, and no gain is computed."""

    @classmethod
    def of(cls, name: str, base: Sequence[float | None], tuned: Sequence[float | None], **options: object) -> "Paired":
        """Makes one of lists with None where a row has no value."""
        as_floats = [
            numpy.array([math.nan if value is None else value for value in side], float) for side in (base, tuned)
        ]
        return cls(name, *as_floats, **options)  # type: ignore[arg-type]

    @cached_property
    def measured(self) -> NDArray[numpy.bool_]:
        """True for rows with a value of both models."""
        return numpy.isfinite(self.base) & numpy.isfinite(self.tuned)


@dataclass(frozen=True)
class Compared:
    """A comparison of two models by one metric, or the measurement of one. Gains are positive if the tuned model is
    better."""

    paired: Paired
    base: float | None
    tuned: float | None
    num_rows: int
    num_improved: int
    num_worsened: int
    p_value: float | None
    detectable_gain: float | None
    _gains: Floats
    """Bootstrap distribution of the gain, sorted."""
    _values: Floats
    """Bootstrap distribution of the tuned model's value, sorted."""

    @property
    def gain(self) -> float | None:
        """The gain over all rows. None if a side was not measured."""
        if self.base is None or self.tuned is None:
            return None
        return (self.tuned - self.base) * (1 if self.paired.higher_is_better else -1)

    @property
    def rounding(self) -> float:
        """Gains up to this may come from the arithmetic."""
        return self.paired.rounding * (abs(self.tuned or 0.0) if self.paired.exponential else 1.0)

    def gain_interval(self, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
        """Returns the two-sided interval of the gain. None with too few rows: not even rows that all agree would show
        a gain, or a loss, with this confidence."""
        if not self.paired.is_sample:
            return None if self.gain is None else (self.gain, self.gain)
        if _too_few(self.num_rows, confidence) or not len(self._gains):
            return None
        if self.paired.is_right_or_wrong:
            return _flip_interval(self.num_improved, self.num_worsened, self.num_rows, confidence)
        return _interval(self._gains, confidence)

    def value_interval(self, confidence: float = CONFIDENCE) -> tuple[float, float] | None:
        """Returns the two-sided interval of the tuned model's value. None with too few rows, as for the gain."""
        if not self.paired.is_sample:
            return None if self.tuned is None else (self.tuned, self.tuned)
        if _too_few(self.num_rows, confidence) or not len(self._values):
            return None
        if self.paired.is_right_or_wrong and self.tuned is not None:
            return _share_interval(round(self.tuned * self.num_rows), self.num_rows, confidence)
        return _interval(self._values, confidence)

    @property
    def conclusion(self) -> str:
        """BETTER, WORSE or NO_DIFFERENCE_SHOWN at the usual confidence."""
        interval = self.gain_interval()
        if interval is None or (interval[0] <= self.rounding and interval[1] >= -self.rounding):
            return "NO_DIFFERENCE_SHOWN"
        return "BETTER" if interval[0] > self.rounding else "WORSE"


def compared(paired: Paired) -> Compared:
    """Compares the rows that both models have a value for. Of a model that is measured alone only its value is set."""
    found = _compared(paired)
    if not paired.alone:
        return found
    return replace(found, base=None, p_value=None, detectable_gain=None, _gains=found._gains[:0])


def _compared(paired: Paired) -> Compared:
    kept = paired.measured
    base, tuned = paired.base[kept], paired.tuned[kept]
    weights = numpy.ones(len(base)) if paired.weights is None else paired.weights[kept]
    sign = 1.0 if paired.higher_is_better else -1.0
    difference = sign * (tuned - base)
    gains, values = _resampled(paired, kept, weights, sign)
    broken = paired.weights is not None and not kept.all()
    if broken:
        # A loss that is not a number is one of the whole model, not of the rows that are left.
        if numpy.isfinite(paired.tuned).all():
            of_tuned = _compared(replace(paired, base=paired.tuned))
            return replace(
                of_tuned,
                paired=paired,
                base=_whole(paired, paired.base),
                num_rows=int(kept.sum()),
                p_value=None,
                detectable_gain=None,
                _gains=gains[:0],
            )
        return Compared(
            paired,
            _whole(paired, paired.base),
            _whole(paired, paired.tuned),
            int(kept.sum()),
            0,
            0,
            None,
            None,
            gains[:0],
            values[:0],
        )
    before, after = _mean(paired, base, weights), _mean(paired, tuned, weights)
    if paired.corpus is not None and len(base):
        before, after = (paired.corpus.score(side[kept].sum(0)) for side in (paired.corpus.base, paired.corpus.tuned))
    improved, worsened = int((difference > 0).sum()), int((difference < 0).sum())
    return Compared(
        paired=paired,
        base=_finite(before) if len(base) else None,
        tuned=_finite(after) if len(base) else None,
        num_rows=len(base),
        num_improved=improved,
        num_worsened=worsened,
        p_value=mcnemar(improved, worsened) if paired.is_right_or_wrong and len(base) else None,
        detectable_gain=_detectable(paired, gains, improved, worsened),
        _gains=gains,
        _values=values,
    )


def mcnemar(improved: int, worsened: int) -> float:
    """Returns the p-value of McNemar's exact test: both models are right equally often (McNemar 1947)."""
    from scipy.stats import binomtest

    flips = improved + worsened
    return float(binomtest(min(improved, worsened), flips).pvalue) if flips else 1.0


def _resampled(paired: Paired, kept: NDArray[numpy.bool_], weights: Floats, sign: float) -> tuple[Floats, Floats]:
    """Returns the sorted gains and tuned values of bootstrap samples of the rows; empty with fewer than two rows."""
    base, tuned = paired.base[kept], paired.tuned[kept]
    if len(base) < 2:
        return numpy.empty(0), numpy.empty(0)
    random = numpy.random.default_rng(_SEED)
    gains, values = [], []
    step = max(1, _BLOCK_VALUES // len(base))
    number = _RESAMPLES if paired.corpus is None else _CORPUS_RESAMPLES
    for start in range(0, number, step):
        drawn = random.integers(0, len(base), (min(step, number - start), len(base)))
        if paired.corpus is None:
            weight = weights[drawn]
            total = weight.sum(1)
            after, before = (tuned[drawn] * weight).sum(1) / total, (base[drawn] * weight).sum(1) / total
        else:
            after, before = (
                numpy.array([paired.corpus.score(side[kept][rows].sum(0)) for rows in drawn])
                for side in (paired.corpus.tuned, paired.corpus.base)
            )
        if paired.exponential:
            after, before = numpy.exp(after), numpy.exp(before)
        gains.append(sign * (after - before))
        values.append(after)
    return numpy.sort(numpy.concatenate(gains)), numpy.sort(numpy.concatenate(values))


def _mean(paired: Paired, values: Floats, weights: Floats) -> float:
    if not len(values):
        return math.nan
    mean = float((values * weights).sum() / weights.sum())
    try:
        return math.exp(mean) if paired.exponential else mean
    except OverflowError:
        return math.inf


def _whole(paired: Paired, values: Floats) -> float | None:
    weights = paired.weights if paired.weights is not None else numpy.ones(len(values))
    return _finite(_mean(paired, values, weights))


def _interval(sorted_values: Floats, confidence: float) -> tuple[float, float] | None:
    if not len(sorted_values):
        return None
    low, high = numpy.quantile(sorted_values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else None


def _too_few(num_rows: int, confidence: float) -> bool:
    """Returns True if a sign test of this many rows cannot reach the confidence (5 rows or fewer for 95 %)."""
    return 2 * 0.5**num_rows > 1 - confidence


def _share_interval(hits: int, num_rows: int, confidence: float) -> tuple[float, float]:
    """Returns the exact interval of a share (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    found = binomtest(hits, num_rows).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def _flip_interval(improved: int, worsened: int, num_rows: int, confidence: float) -> tuple[float, float]:
    """Returns an interval of the gain in a share of right answers, which excludes 0 where McNemar's exact test does.

    The gain is the share of flips times (2 p - 1), with p the share of improvements among the flips. Both have exact
    intervals, whose most distant values are taken, so this one is not too narrow for few rows.
    """
    flips = improved + worsened
    fewest, most = _share_interval(flips, num_rows, confidence)
    lowest, highest = _share_interval(improved, flips, confidence) if flips else (0.0, 1.0)
    low, high = 2 * lowest - 1, 2 * highest - 1
    return low * (fewest if low > 0 else most), high * (most if high > 0 else fewest)


def _detectable(paired: Paired, gains: Floats, improved: int, worsened: int) -> float | None:
    """Returns the smallest true gain that as many rows, as scattered as these, show with a probability of 0.8. None if
    there are too few rows for any."""
    num_rows = int(paired.measured.sum())
    if not len(gains) or _too_few(num_rows, CONFIDENCE):
        return None
    from scipy.stats import norm

    quantiles = float(norm.ppf((1 + CONFIDENCE) / 2)) + _POWER_Z
    if not paired.is_right_or_wrong:
        return _finite(max(quantiles * float(gains.std()), paired.rounding))
    # With half a row added to each outcome, rows that agree are not taken for certain (Agresti and Min 2005).
    flips, more = improved + worsened + 1, improved - worsened
    spread = math.sqrt(flips - more**2 / (num_rows + 2)) / (num_rows + 2)
    fewest = next(number for number in range(1, num_rows + 1) if not _too_few(number, CONFIDENCE))
    found = max(quantiles * spread, fewest / num_rows)
    return found if found <= 1 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
