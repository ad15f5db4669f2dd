"""Every refusal at once: what is wrong with the writing of a job, and with the values that could be read."""

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
    """A client knows names and types, ranges only the engine behind `ask`: when the client refuses `values`, it is
    asked as well."""
    try:
        yield
    except UnreadableSpec as error:
        try:
            error.violations += _out_of_range(values, ask)
        except FineTuneFlowError as silence:
            unchecked = f"There may be more: ranges and recipes were not checked. {silence.message}"
            error.advice = "\n".join(filter(None, (error.advice, unchecked, silence.advice)))
        raise


def _out_of_range(values: Mapping[str, Any], ask: Ask) -> tuple[Violation, ...]:
    """Raises FineTuneFlowError where nobody says."""
    # The smallest question that the settings of a job are part of: about no machine, and no model that is far away.
    request = pb.EstimateResourcesRequest(spec=readable_spec(values), memory_bytes=1 << 30)
    request.spec.base_model = "smollm2-135m"
    try:
        ask(request)
    except InvalidArgument as error:
        return tuple(error.violations)
    return ()
