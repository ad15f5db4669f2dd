"""Findings about the losses of a training."""

from engine.evaluation.verdicts import training_findings


def test_advice_on_a_high_perplexity_fits_a_diverged_training_too() -> None:
    """Advised to train for more epochs, the owner of a diverged job would repeat it for longer."""
    (_, perplexity) = training_findings(7.5, 7.6, early_stopped=False)
    assert "if it rose, a lower learning rate does" in perplexity
    assert len(list(training_findings(1.0, 1.1, early_stopped=False))) == 1
