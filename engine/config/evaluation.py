"""Settings of an evaluation: what is measured, and the gate that decides about the tuned model."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, model_validator

from engine.config.graders import MAX_GRADERS, CompareModel, checked_grader, grader
from engine.config.metrics import (
    GRADER_PREFIX,
    MEASURED_ALWAYS,
    MUST_PASS,
    QUESTIONS,
    REGRESSION_LOSS,
    checked_metric,
    checked_pattern,
    value_range,
)
from engine.config.section import Section, kib
from engine.errors import Violation

GENERAL: Final = "general"
"""The regression set that ships with the server."""
NO_SET: Final = "none"
_MAX_SCHEMA_BYTES: Final = 16 * 1024
_BOUND: Final = 1e6


class GateCondition(Section):
    """A condition that the tuned model must meet."""

    metric: str = Field(min_length=1, max_length=1200)
    min_gain: float | None = Field(default=None, ge=-_BOUND, le=_BOUND)
    """The gain over the model it is compared with must be above it."""
    min_value: float | None = Field(default=None, ge=-_BOUND, le=_BOUND)
    max_value: float | None = Field(default=None, ge=-_BOUND, le=_BOUND)
    confidence: float = Field(default=0.95, ge=0.5, le=0.999)

    @model_validator(mode="after")
    def _one_bound(self) -> "GateCondition":
        given = [name for name in ("min_gain", "min_value", "max_value") if getattr(self, name) is not None]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ValueError(f"needs exactly one of min_gain, min_value and max_value; it has {found}")
        smallest, largest = value_range(self.metric)
        if given == ["min_gain"]:
            smallest, largest = smallest - largest, largest - smallest
        if not smallest <= (bound := getattr(self, given[0])) <= largest:
            raise ValueError(f"{given[0]} is {bound:g}; for {self.metric} it is between {smallest:g} and {largest:g}")
        return self


def _valid_schema(schema: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(schema)
    if len(text) > _MAX_SCHEMA_BYTES:
        raise ValueError(f"it has {len(text):,} bytes; at most {_MAX_SCHEMA_BYTES:,} are allowed")
    for key, value in _keywords(schema):
        if key in ("$ref", "$dynamicRef") and isinstance(value, str) and not value.startswith("#"):
            raise ValueError(f"it refers to {value!r}; only references within the schema (#...) are allowed")
        if key == "patternProperties":
            raise ValueError(f"{key} is not available: a pattern that takes long could not be stopped")
        if key == "pattern" and isinstance(value, str):
            checked_pattern(value)
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"{error.json_path}: {error.message[:200]}") from None
    return schema


def _keywords(value: Any) -> Iterator[tuple[str, Any]]:
    """Yields every key of a schema with its value, at any depth."""
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keywords(inner)
    if isinstance(value, dict):
        yield from value.items()


class Evaluation(Section):
    """Settings of the evaluation stage."""

    enabled: bool = True
    num_samples: int = Field(default=5, ge=0, le=100)
    prompts: list[Annotated[str, Field(min_length=1), kib(16)]] = Field(default=[], max_length=100)
    max_new_tokens: int = Field(default=128, ge=1, le=4096)
    prompt_steps: int | None = Field(default=None, ge=1, le=1_000_000)
    """Optimizer steps between two answers to `prompts` in training; None: they are not answered in training."""
    prompt_epochs: float | None = Field(default=None, gt=0, le=1000)
    """The same in epochs, until preflight has converted it."""
    max_rows: int = Field(default=200, ge=0, le=10_000)
    """Maximum number of held-out rows that both models answer."""
    metrics: list[Annotated[str, AfterValidator(checked_metric)]] = Field(default=[], max_length=32)
    """Metrics of the answers. Empty: chosen by what the expected answers are."""
    json_schema: Annotated[dict[str, Any], AfterValidator(_valid_schema)] | None = None
    """JSON Schema for the metric json_schema."""
    graders: list[Annotated[dict[str, Any], AfterValidator(checked_grader)]] = Field(default=[], max_length=MAX_GRADERS)
    """Grader objects (`engine.config.graders`)."""
    gate: list[GateCondition] = Field(default=[], max_length=32)
    """Conditions for promoting the tuned model. Empty: its loss is lower."""
    questions: str = Field(default="", max_length=128, pattern=r"^(ds_.+)?$")
    """Id of an uploaded dataset of critical questions; empty: none."""
    regression: str = Field(default=GENERAL, max_length=128, pattern=r"^(general|none|ds_.+)$")
    """`general`, `none`, or the id of an uploaded dataset."""
    harness_tasks: list[Annotated[str, Field(min_length=1, max_length=128)]] = Field(default=[], max_length=16)
    """Tasks of lm-evaluation-harness in the operator's folder."""
    harness_limit: int | None = Field(default=None, ge=1, le=1_000_000)
    """Maximum number of rows of each of these tasks; None: all."""

    @model_validator(mode="after")
    def _consistent(self) -> "Evaluation":
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError("metrics names one metric twice")
        if "json_schema" in self.metrics and self.json_schema is None:
            raise ValueError("the metric json_schema needs evaluation.json_schema")
        if self.json_schema is not None and self.metrics and "json_schema" not in self.metrics:
            raise ValueError("json_schema is set, but metrics does not name json_schema")
        if len(set(self.harness_tasks)) < len(self.harness_tasks):
            raise ValueError("harness_tasks names one task twice")
        if self.harness_limit is not None and not self.harness_tasks:
            raise ValueError("harness_limit is set, but harness_tasks names no task")
        names = [grader(each).name for each in self.graders]
        if repeated := next((name for name in names if names.count(name) > 1), ""):
            raise ValueError(f"two graders have the name {repeated!r}")
        for index, condition in enumerate(self.gate):
            try:
                self._check_condition(condition, names)
            except ValueError as error:
                raise ValueError(f"gate[{index}].metric is {condition.metric!r}: {error}") from None
        return self

    def _check_condition(self, condition: GateCondition, graders: list[str]) -> None:
        name = condition.metric
        if condition.min_gain is not None and name == "length_words":
            raise ValueError("neither more nor fewer words are better; use min_value or max_value")
        if name == REGRESSION_LOSS and self.regression == NO_SET:
            raise ValueError("evaluation.regression is none")
        if name in (QUESTIONS, MUST_PASS) and not self.questions:
            raise ValueError("there are no evaluation.questions")
        if name.startswith(GRADER_PREFIX):
            if name.removeprefix(GRADER_PREFIX) not in graders:
                raise ValueError("there is no such grader")
        elif name not in MEASURED_ALWAYS:
            checked_metric(name)
            if name == "json_schema" and self.json_schema is None:
                raise ValueError("it needs evaluation.json_schema")


def needing_two_models(evaluation: Evaluation, path: str) -> list[Violation]:
    """Returns a violation for each setting that needs a second model; `path` is that of the section."""
    alone = "only one model is measured; name the other one in `against`"
    found = [
        Violation(f"{path}.gate[{index}].min_gain", f"A gain is one over another model, and {alone}, or set a bound.")
        for index, condition in enumerate(evaluation.gate)
        if condition.min_gain is not None
    ]
    found += [
        Violation(f"{path}.graders[{index}].type", f"compare_model compares the answers of two models, and {alone}.")
        for index, value in enumerate(evaluation.graders)
        if isinstance(grader(value), CompareModel)
    ]
    return found
