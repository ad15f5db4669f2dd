"""What a stored spec names, and how large it may be."""

from collections.abc import Iterator

from chassis.errors import InvalidArgument, Violation
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec

MAX_SPEC_BYTES = 48 << 10
"""Resolved, with every field filled in, it has to fit into one event."""


def dataset_ids(spec: FineTuningJobSpec) -> Iterator[str]:
    """The datasets a spec names, wherever it may name one."""
    for sources in (spec.training_data, spec.evaluation_data, *(phase.training_data for phase in spec.phases)):
        for source in sources:
            yield source.dataset


def check_size(spec: FineTuningJobSpec) -> None:
    """Refuses a spec that would not fit into an event."""
    size = spec.ByteSize()
    if size > MAX_SPEC_BYTES:
        problem = f"it has {size:,} bytes, more than {MAX_SPEC_BYTES:,}; prompts and the chat template take most"
        raise InvalidArgument("SPEC_TOO_LARGE", f"the spec is too large: {problem}", [Violation("spec", problem)])
