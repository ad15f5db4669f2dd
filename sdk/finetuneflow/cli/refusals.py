"""All errors of a spec at once: names and types, which the client checks, and ranges, which the engine checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from finetuneflow.errors import FineTuneFlowError, InvalidArgument, Violation
from finetuneflow.spec import UnreadableSpec, readable_spec
from finetuneflow.v1 import probe_service_pb2 as pb

Ask = Callable[[pb.EstimateResourcesRequest], object]


@contextmanager
def every_refusal(values: Mapping[str, Any], ask: Ask) -> Iterator[None]:
    """Adds the engine's violations to the client's. The client checks names and types only; when it refuses `values`,
    `ask` has the engine check the ranges as well."""
    try:
        yield
    except UnreadableSpec as error:
        try:
            error.violations += _out_of_range(values, ask)
        except FineTuneFlowError as silence:
            unchecked = f"There may be more errors: ranges and recipes were not checked. {silence.message}"
            error.advice = "\n".join(filter(None, (error.advice, unchecked, silence.advice)))
        raise


def _out_of_range(values: Mapping[str, Any], ask: Ask) -> tuple[Violation, ...]:
    """Returns the values out of range. Raises FineTuneFlowError if the engine cannot be asked."""
    # The cheapest request that contains a job's settings: it needs no machine, and no model from the hub.
    request = pb.EstimateResourcesRequest(spec=readable_spec(values), memory_bytes=1 << 30)
    request.spec.base_model = "smollm2-135m"
    try:
        ask(request)
    except InvalidArgument as error:
        return tuple(error.violations)
    return ()
