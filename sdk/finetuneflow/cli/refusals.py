"""Errors of a request: all those of a spec at once, and with the options of a command instead of the fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from finetuneflow.errors import ApiError, FineTuneFlowError, InvalidArgument, Violation
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


@contextmanager
def options_named(options: Mapping[str, str], *, as_json: bool) -> Iterator[None]:
    """Names the options of a command in the errors of its call, instead of the fields of the request: `options` has
    them by the path of the field. Programs (`as_json`) are told the fields."""
    try:
        yield
    except ApiError as error:
        if not as_json:
            fields = sorted(options, key=len, reverse=True)
            error.violations = tuple(
                Violation(_with_options(field, options, fields), _with_options(said, options, fields))
                for field, said in error.violations
            )
            error.message = _with_options(error.message, options, fields)
            error.advice = _with_options(error.advice, options, fields)
        raise


def _with_options(text: str, options: Mapping[str, str], fields: Sequence[str]) -> str:
    """Replaces the paths of fields. Those without a dot are words too: they are replaced at the beginning only."""
    for field in fields:
        path = rf"{re.escape(field)}(\[\d+\])?(\.dataset\b)?(?![\w-])"
        pattern = rf"(?<![\w.=]){path}" if "." in field else rf"\A{path}(?=$|[.:]| is | has )"
        text = re.sub(pattern, options[field], text)
    return text
