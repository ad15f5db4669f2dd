"""Findings about the losses of a training."""

import math

import pytest

from engine.evaluation.verdicts import training_findings


def test_advice_on_a_high_perplexity_fits_a_diverged_training_too() -> None:
    """Advised to train for more epochs, the owner of a diverged job would repeat it for longer."""
    (_, perplexity) = training_findings(7.5, 7.6, epochs=3, early_stopped=False)
    assert "if it rose, a lower learning rate does" in perplexity
    assert len(list(training_findings(1.0, 1.1, epochs=3, early_stopped=False))) == 1


@pytest.mark.parametrize(
    ("gap", "verdict"), [(0.49, "no sign of overfitting"), (0.5, "some overfitting"), (1.01, "(overfitting: above 1.0")]
)
def test_gap_of_the_losses_has_a_verdict(gap: float, verdict: str) -> None:
    """Below 0.5 is good, above 1.0 the rows were learned by heart."""
    (said,) = training_findings(1.0, 1.0 + gap, epochs=3, early_stopped=False)
    assert verdict in said


@pytest.mark.parametrize(("epochs", "blamed"), [(0, True), (0.01, False), (1, False), (1.01, True)])
def test_rows_that_were_trained_once_are_not_learned_by_heart(epochs: float, blamed: bool) -> None:
    """After a hundredth of a corpus, fewer epochs would help nothing."""
    (said,) = training_findings(1.0, 2.1, epochs=epochs, early_stopped=False)
    assert ("fewer epochs" in said) == blamed
    assert ("within the first epoch" in said) != blamed


@pytest.mark.parametrize(
    ("perplexity", "verdict"),
    [(9.9, None), (10, "meets that of text only"), (19.9, "meets that of text only"), (20.1, "meets neither")],
)
def test_perplexity_is_held_against_the_targets(perplexity: float, verdict: str | None) -> None:
    """A model of code with 15 has missed its target, although one of text has met it."""
    loss = math.log(perplexity) + 1e-9
    found = [said for said in training_findings(loss, loss, epochs=3, early_stopped=False) if "perplexity" in said]
    assert [verdict in said for said in found if verdict] == [True] * (verdict is not None)
    assert bool(found) == (verdict is not None)
