"""Conversion between `FineTuningJobSpec` messages and `JobConfig`."""

from collections.abc import Iterator, Mapping, MutableSequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from engine.config.integrations import Integration
from engine.config.job import JobConfig
from finetuneflow.v1.dataset_service_pb2 import PreviewDatasetRequest, ValidateDatasetRequest
from finetuneflow.v1.fine_tuning_job_pb2 import AdapterStart
from finetuneflow.v1.fine_tuning_job_spec_pb2 import (
    DataSource,
    EvaluationSpec,
    ExportSpec,
    FineTuningJobSpec,
    IntegrationSpec,
)


def spec_to_dict(
    message: FineTuningJobSpec | DataSource | EvaluationSpec | ExportSpec | IntegrationSpec | AdapterStart,
) -> dict[str, Any]:
    """Returns the fields that are set, by name.

    An enum value becomes its lower-case name without prefix: `TRAINING_METHOD_LORA` is `lora`. A value that this
    version does not know stays a number, which `job_config` refuses.
    """
    return _read(message)


def data_sources(spec: FineTuningJobSpec) -> Iterator[tuple[str, DataSource]]:
    """Yields every data source of a spec with the path of its `dataset` field."""
    for path, sources in source_lists(spec):
        for index, source in enumerate(sources):
            yield f"spec.{path}[{index}].dataset", source


def source_lists(spec: FineTuningJobSpec) -> Iterator[tuple[str, MutableSequence[DataSource]]]:
    """Yields every list of data sources of a spec with its path."""
    yield "training_data", spec.training_data
    for number, phase in enumerate(spec.phases):
        yield f"phases[{number}].training_data", phase.training_data
    yield "evaluation_data", spec.evaluation_data


def config_to_spec(config: JobConfig) -> FineTuningJobSpec:
    """Returns a spec with all fields set, except those whose value is None, such as an unset prompt or step limit.

    The result can be sent as a spec again: it has warmup_ratio or warmup_steps, whichever applies, and with phases
    neither num_epochs nor max_steps, because each phase has its own length.
    """
    values = config.model_dump()
    if config.phases:
        values["hyperparameters"] |= {"num_epochs": None, "max_steps": None}
    if values["hyperparameters"]["warmup_steps"] is not None:
        values["hyperparameters"]["warmup_ratio"] = None
    spec = FineTuningJobSpec()
    _fill(spec, values)
    return spec


def values_to_spec(values: Mapping[str, Any]) -> FineTuningJobSpec:
    """Returns a spec with only the values of a recipe set."""
    spec = FineTuningJobSpec()
    _fill(spec, values)
    return spec


def integration_to_spec(integration: Integration) -> IntegrationSpec:
    """Returns the settings of an integration with all fields set that have a value."""
    spec = IntegrationSpec()
    _fill(spec, integration.model_dump())
    return spec


def resolved_config(message: FineTuningJobSpec) -> JobConfig:
    """Reads back a spec that `config_to_spec` wrote, without applying a recipe again.

    Raises pydantic.ValidationError for a spec from a version with other fields or ranges.
    """
    return JobConfig.model_validate(_read(message))


def dataset_job(request: ValidateDatasetRequest | PreviewDatasetRequest) -> dict[str, Any]:
    """Returns the spec of a job that trains on the request's source and holds out no rows."""
    source = DataSource()
    source.CopyFrom(request.source)
    source.ClearField("weight")
    source.ClearField("max_samples")
    source.ClearField("max_tokens")
    spec = FineTuningJobSpec(base_model=request.base_model, training_data=[source], holdout_fraction=0.0)
    if request.HasField("max_length"):
        spec.hyperparameters.max_length = request.max_length
    spec.hyperparameters.truncation = request.truncation
    if request.HasField("chat_template"):
        spec.chat_template = request.chat_template
    if request.HasField("system_prompt"):
        spec.system_prompt = request.system_prompt
    return spec_to_dict(spec)


def _read(message: Message) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            values[field.name] = dict(value)
        elif field.is_repeated:
            values[field.name] = [_plain(field, item) for item in value]
        else:
            values[field.name] = _plain(field, value)
    return values


def _plain(field: Any, value: Any) -> Any:
    if isinstance(value, Struct):
        return MessageToDict(value)
    if isinstance(value, Message):
        return _read(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name.removeprefix(_prefix(field.enum_type)).lower() if known else value
    return value


def _fill(message: Message, values: Mapping[str, Any]) -> None:
    if isinstance(message, Struct):
        message.update(values)
        return
    for name, value in values.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        if value is None:
            continue
        target = getattr(message, name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            target.update(value)
        elif field.message_type is not None and field.is_repeated:
            for item in value:
                _fill(target.add(), item)
        elif field.message_type is not None:
            # A section without values is set too, so that the reader sees that its defaults apply.
            target.SetInParent()
            _fill(target, value)
        elif field.is_repeated:
            target.extend(_wire(field, item) for item in value)
        else:
            setattr(message, name, _wire(field, value))


def _wire(field: Any, value: Any) -> Any:
    if field.enum_type is None:
        return value
    return field.enum_type.values_by_name[_prefix(field.enum_type) + str(value).upper()].number


def _prefix(enum: Any) -> str:
    words = "".join(f"_{letter}" if letter.isupper() else letter for letter in enum.name)
    return f"{words.lstrip('_').upper()}_"
