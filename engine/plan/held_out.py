"""Compares the held-out rows of a job with the data that its starting adapter was trained on."""

from collections.abc import Sequence

from engine.config.start import TrainedData, split_key, trained_datasets
from engine.plan.resolved import Resolved


def check_held_out(resolved: Resolved, trained_data: Sequence[TrainedData]) -> None:
    """Adds a warning if the adapter that the job starts from may have been trained on rows that are held out now."""
    config = resolved.config
    own = {source.dataset for source in config.evaluation_data} or set(
        trained_datasets(config) if config.holdout_fraction else ()
    )
    key = split_key(config)
    seen = {name for data in trained_data if data.split_key != key for name in data.datasets}
    if both := sorted(own & seen):
        names = ", ".join(both)
        message = (
            f"Held-out rows are from {names}, which the adapter {config.start_from} was trained on with another split: "
            "eval_loss may be too low."
        )
        advice = "Split it as that job did (training_data, holdout_fraction, seed), or name other evaluation_data."
        resolved.warn("EVALUATION_LEAKED", message, advice, "evaluation_data")
