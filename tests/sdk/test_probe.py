"""`client.probe`: recommendations, the decision matrix and estimates."""

import pytest

from finetuneflow import Client
from finetuneflow.errors import InvalidArgument
from finetuneflow.resources import FitVerdict, TrainingMethod


def test_adjustments_of_recommendation_are_arguments_of_create(client: Client, gateway) -> None:  # type: ignore[no-untyped-def]
    """`jobs.create` accepts them unchanged."""
    found = client.probe.recommend("llama-3.1-8b", memory_gib=8, gpu="RTX 4060", lora={"r": 8})
    assert (found.method, found.verdict) == (TrainingMethod.QLORA, FitVerdict.TIGHT)
    assert found.adjustments == {"hyperparameters": {"max_length": 1024}}
    assert found.changes[0].before == "2048"
    assert found.seed.method == "LORA"
    assert found.estimate.duration_seconds is None
    ((_, request),) = [call for call in gateway.calls if call[0] == "RecommendMethod"]
    assert (request.memory_bytes, request.gpu, request.spec.lora.r) == (8 * 2**30, "RTX 4060", 8)


def test_decision_matrix_contains_the_seed_verdicts(client: Client) -> None:
    refused, taken = client.probe.decision_matrix()
    assert (refused.method, refused.verdict, refused.seed_method) == (None, "IMPOSSIBLE", "QLORA")
    assert refused.difference
    assert taken.method == "QLORA"


def test_estimate_needs_no_uploaded_data(client: Client) -> None:
    """Counts replace files; a wrong key is refused before anything is sent."""
    found = client.probe.estimate(
        base_model="llama-3.1-8b", training_data="not/there.jsonl", num_examples=10, mean_tokens=100
    )
    assert (found.duration_seconds, found.cost, found.currency) == (3600, 0.3, "USD")
    assert client.probe.estimate(base_model="llama-3.1-8b").cost is None
    with pytest.raises(InvalidArgument, match="lora"):
        client.probe.estimate(base_model="llama-3.1-8b", lora={"rank": 3})


def test_number_out_of_field_range_is_an_invalid_argument(client: Client, gateway) -> None:  # type: ignore[no-untyped-def]
    """A bare ValueError of protobuf names neither the argument nor its range."""
    estimate, preview = client.probe.estimate, client.datasets.preview
    for ask, field in (
        (lambda: estimate(base_model="m", longest_row=9 * 10**12), "longest_row"),
        (lambda: estimate(base_model="m", num_examples=10**30), "num_examples"),
        (lambda: estimate(base_model="m", mean_tokens=float("inf")), "mean_tokens"),
        (lambda: estimate(base_model="m", memory_gib=float("nan")), "memory_gib"),
        (lambda: client.probe.recommend("m", memory_gib=1e300), "memory_gib"),
        (lambda: client.probe.recommend("m", longest_row=10**10), "longest_row"),
        (lambda: preview("ds_1", "m", max_length=10**12), "max_length"),
        (lambda: preview("ds_1", "m", first_row=10**30), "first_row"),
        (lambda: preview({"dataset": "ds_1", "weight": "much"}, "m"), "weight"),
        (lambda: client.jobs.metrics("job_1", max_points=10**12), "max_points"),
        (lambda: list(client.jobs.watch("job_1", after_sequence=10**30)), "after_sequence"),
    ):
        with pytest.raises(InvalidArgument, match="must be a") as caught:
            ask()
        assert [violation.field for violation in caught.value.violations] == [field]
    assert gateway.calls == []
