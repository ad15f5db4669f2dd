"""What a stored spec names, and how large it may be."""

from collections.abc import Iterator, Mapping, Sequence

from google.protobuf.message import Message

from chassis.errors import InvalidArgument, Violation
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec

MAX_SPEC_BYTES = 48 << 10
"""Resolved, with every field filled in, it has to fit into one event."""


def dataset_ids(spec: FineTuningJobSpec) -> Iterator[str]:
    """The datasets a spec names, wherever it may name one."""
    for sources in (spec.training_data, spec.evaluation_data, *(phase.training_data for phase in spec.phases)):
        for source in sources:
            yield source.dataset


def check_text(spec: FineTuningJobSpec) -> None:
    """Refuses NUL characters: PostgreSQL can't search what holds one, and no name or prompt needs it."""
    found = [Violation(path, "holds a NUL character; remove it") for path in _nul_paths(spec, "spec")]
    if found:
        raise InvalidArgument("INVALID_TEXT", f"{found[0].field} {found[0].description}", found)


def _nul_paths(value: object, path: str) -> Iterator[str]:
    match value:
        case str():
            if "\0" in value:
                yield path
        case Message():
            for field, inner in value.ListFields():
                yield from _nul_paths(inner, f"{path}.{field.name}")
        case Mapping():
            for key, inner in value.items():
                yield from _nul_paths(key, path)
                yield from _nul_paths(inner, f"{path}[{key!r}]")
        case Sequence() if not isinstance(value, bytes):
            for index, inner in enumerate(value):
                yield from _nul_paths(inner, f"{path}[{index}]")


def check_size(spec: FineTuningJobSpec) -> None:
    """Refuses a spec that would not fit into an event."""
    size = spec.ByteSize()
    if size > MAX_SPEC_BYTES:
        problem = f"it has {size:,} bytes, more than {MAX_SPEC_BYTES:,}; prompts and the chat template take most"
        raise InvalidArgument("SPEC_TOO_LARGE", f"the spec is too large: {problem}", [Violation("spec", problem)])
