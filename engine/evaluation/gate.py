"""Decides by conditions whether a tuned model is promoted, with one sentence for each condition."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from engine.config.evaluation import GateCondition
from engine.evaluation.comparison import Compared

PROMOTE: Final = "PROMOTE"
REJECT: Final = "REJECT"
INCONCLUSIVE: Final = "INCONCLUSIVE"


@dataclass(frozen=True)
class Outcome:
    """Decision about one condition."""

    sentence: str
    decision: str
    """PROMOTE if the condition holds, REJECT if it fails, otherwise INCONCLUSIVE."""


def decide(conditions: Sequence[GateCondition], measured: Mapping[str, Compared]) -> tuple[str, list[Outcome]]:
    """Returns the decision and the outcome of each condition; `measured` is by the metric's name."""
    outcomes = [_outcome(condition, measured.get(condition.metric)) for condition in conditions]
    decisions = {outcome.decision for outcome in outcomes}
    return next((each for each in (REJECT, INCONCLUSIVE) if each in decisions), PROMOTE), outcomes


def _outcome(condition: GateCondition, found: Compared | None) -> Outcome:
    wanted = _wanted(condition)
    if found is None or found.tuned is None or (condition.min_gain is not None and found.gain is None):
        if found is not None and found.tuned is not None:
            problem = "the value of the model that it is compared with is not a finite number, so there is no gain"
            return Outcome(f"{wanted}: {problem}, and the condition is inconclusive.", INCONCLUSIVE)
        if found is not None and found.paired.weights is not None and found.num_rows < len(found.paired.tuned):
            return Outcome(f"{wanted}: the value is not a number on some rows, so the condition fails.", REJECT)
        return Outcome(f"{wanted}: not measured on any row, so the condition is inconclusive.", INCONCLUSIVE)
    value, interval = _value(condition, found)
    said = figure(value)
    rows = f"{found.num_rows:,} row{'s' * (found.num_rows != 1)}"
    if interval is None:
        return Outcome(f"{wanted}: measured {said} on {rows}, too few for an interval.", INCONCLUSIVE)
    low, high = interval
    said += f" on {rows}"
    if found.paired.is_sample:
        said += f", interval [{figure(low)}, {figure(high)}] at {condition.confidence:.1%} confidence"
    decision = _decision(condition, low, high, found.rounding)
    words = {PROMOTE: "holds", REJECT: "fails", INCONCLUSIVE: "is neither shown nor refuted"}
    hint = ""
    if decision == INCONCLUSIVE and condition.min_gain is not None:
        if found.rounding and not low <= condition.min_gain <= high:
            hint = f"; differences up to {figure(found.rounding)} may come from the arithmetic"
        elif found.detectable_gain is not None:
            hint = f"; {rows} show a gain of {figure(found.detectable_gain)} with a probability of 80 %"
    return Outcome(f"{wanted}: measured {said}: the condition {words[decision]}{hint}.", decision)


def figure(value: float) -> str:
    """Returns a number with four decimals, or with two significant digits if that would be 0."""
    return f"{value:.1e}" if 0 < abs(value) < 5e-5 else f"{value:.4f}"


def _wanted(condition: GateCondition) -> str:
    if condition.min_gain is not None:
        return f"gain in {condition.metric} above {condition.min_gain:g}"
    if condition.min_value is not None:
        return f"{condition.metric} at least {condition.min_value:g}"
    return f"{condition.metric} at most {condition.max_value:g}"


def _value(condition: GateCondition, found: Compared) -> tuple[float, tuple[float, float] | None]:
    if condition.min_gain is not None:
        assert found.gain is not None  # noqa: S101 - checked by the caller
        return found.gain, found.gain_interval(condition.confidence)
    assert found.tuned is not None  # noqa: S101 - checked by the caller
    return found.tuned, found.value_interval(condition.confidence)


def _decision(condition: GateCondition, low: float, high: float, rounding: float) -> str:
    if condition.min_gain is not None:
        if low > condition.min_gain + rounding:
            return PROMOTE
        return REJECT if high < condition.min_gain - rounding else INCONCLUSIVE
    if condition.min_value is not None:
        if low >= condition.min_value:
            return PROMOTE
        return REJECT if high < condition.min_value else INCONCLUSIVE
    assert condition.max_value is not None  # noqa: S101 - one of the three is set
    if high <= condition.max_value:
        return PROMOTE
    return REJECT if low > condition.max_value else INCONCLUSIVE
