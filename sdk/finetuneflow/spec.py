"""Conversion between a caller's table (a dict, a TOML file) and a FineTuningJobSpec.

Keys are the field names of the message or other names of them (see `finetuneflow.setting_names`), enums are lower-case
names without prefix (`method="lora"`), and None means unset. All problems are reported at once, with the field paths
that the server uses, before anything is uploaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from finetuneflow.enums import enum_name, enum_number, nearest
from finetuneflow.errors import InvalidArgument, Violation
from finetuneflow.files import files_of_folder, utf8_path
from finetuneflow.setting_names import JOB_RULES, Translation, field_path, translate
from finetuneflow.v1 import fine_tuning_job_spec_pb2 as pb

# Names in common use, each with the field to suggest. Not synonyms: their exact meaning differs between libraries.
_SHORT_FORMS: Mapping[str, str] = {
    "dataset": "training_data",
    "datasets": "training_data",
    "dropout": "lora_dropout",
    "grad_accum": "gradient_accumulation_steps",
    "gradient_accumulation": "gradient_accumulation_steps",
    "judge": "graders",
    "lora_rank": "r",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "max_seq_len": "max_length",
    "model": "base_model",
    "name": "display_name",
    "push": "hub",
    "rank": "r",
    "seq_len": "max_length",
    "warmup": "warmup_ratio",
}
_NO_SUCH_FIELD = "there is no such field"
_LONG_WORD = 5
_SECTIONS = ("hyperparameters", "lora", "quantization", "evaluation", "export", "resources")
_SOURCES = ("training_data", "evaluation_data")
_SETS: Mapping[str, tuple[str, ...]] = {"questions": ("",), "regression": ("", "general", "none")}
"""Fields that name one dataset, with the values that are none."""

_EVERY_LAYER = "all-linear"
_INTEGERS = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64}
_FLOATS = {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}


@dataclass(frozen=True)
class LocalFile:
    """A local file that becomes a dataset."""

    message: Message
    """The message that names it."""
    field: str
    """The field that takes the id of the dataset."""
    path: Path
    display_name: str = ""
    """Display name of the dataset; empty: the file's name."""

    def name(self, dataset_id: str) -> None:
        """Sets the id of the dataset."""
        setattr(self.message, self.field, dataset_id)


@dataclass
class SpecDraft:
    """A spec whose local files have not been uploaded yet."""

    spec: pb.FineTuningJobSpec
    """The spec; fields that name local files are empty."""
    files: list[LocalFile] = field(default_factory=list)
    """The local files."""
    translations: list[Translation] = field(default_factory=list)
    """The settings that had other names or forms, and those that are implied."""


class UnreadableSpec(InvalidArgument):
    """A spec that the client can't write as a message, and that no server has seen."""

    def __init__(self, message: str, violations: Sequence[Violation]) -> None:
        super().__init__(message, reason="INVALID_CONFIG", violations=violations)


def draft_spec(values: Mapping[str, Any]) -> SpecDraft:
    """Converts a table to a spec. Raises InvalidArgument with every unknown name, wrong type, missing file and missing
    required field."""
    reader = _Reader()
    spec = reader.read(values)
    if not spec.base_model and not spec.start_from.startswith("ft:"):
        reader.refuse("spec.base_model", "required: a catalogue alias (`ftf models list`) or a Hugging Face id")
    if not spec.training_data and not spec.phases and not reader.refused("spec.training_data"):
        reader.refuse("spec.training_data", "required: a file, a dataset id or hf://owner/name")
    if reader.violations:
        raise UnreadableSpec("The job's settings are invalid.", reader.violations)
    return SpecDraft(spec, reader.files, reader.translations)


def partial_spec(values: Mapping[str, Any]) -> pb.FineTuningJobSpec:
    """Converts a table to a spec without required fields, as estimates and recommendations take it. Raises
    InvalidArgument."""
    reader = _Reader()
    spec = reader.read(values)
    if reader.violations:
        raise UnreadableSpec("The settings are invalid.", reader.violations)
    return spec


def push_settings(values: Mapping[str, Any]) -> pb.HubPush:
    """Converts the table of a push to the hub; None is unset. Raises InvalidArgument."""
    reader, message = _Reader(), pb.HubPush()
    reader.read_message(message, values, "spec.hub")
    if reader.violations:
        raise UnreadableSpec("The settings of the push are invalid.", reader.violations)
    return message


def draft_evaluation(values: Mapping[str, Any]) -> tuple[pb.EvaluationSpec, list[LocalFile]]:
    """Converts the settings of an evaluation; None is unset. Also returns the local files that they name. Raises
    InvalidArgument."""
    reader = _Reader()
    spec = pb.EvaluationSpec()
    reader.read_message(spec, values, "spec")
    if reader.violations:
        raise UnreadableSpec("The settings are invalid.", reader.violations)
    return spec, reader.files


def integration_spec(values: Mapping[str, Any]) -> pb.IntegrationSpec:
    """Converts a table with one service and its settings. Raises InvalidArgument."""
    reader = _Reader()
    spec = pb.IntegrationSpec()
    reader.read_message(spec, values, "spec")
    if reader.violations:
        raise UnreadableSpec("The settings are invalid.", reader.violations)
    return spec


def draft_sources(value: Any, field: str) -> tuple[list[pb.DataSource], list[LocalFile]]:
    """Converts a path, a dataset id, a table or a list of these to sources. Also returns the local files among them.
    Raises InvalidArgument."""
    reader = _Reader()
    draft = pb.FineTuningJobSpec()
    reader.read_sources(draft.evaluation_data, value, field)
    if reader.violations:
        raise UnreadableSpec("The data cannot be used.", reader.violations)
    return list(draft.evaluation_data), reader.files


def readable_spec(values: Mapping[str, Any]) -> pb.FineTuningJobSpec:
    """Converts the valid part of a table to a spec and ignores the rest. Local files get a placeholder id."""
    reader = _Reader()
    spec = reader.read(values)
    phased = [source for phase in spec.phases for source in phase.training_data]
    for source in (*spec.training_data, *spec.evaluation_data, *phased):
        source.dataset = source.dataset or "file"
    for file in reader.files:
        if file.field in _SETS:
            file.name("ds_file")
    return spec


def spec_to_dict(message: Message) -> dict[str, Any]:
    """Converts a spec to the table that `draft_spec` takes. Unset fields are absent."""
    return {descriptor.name: _plain(descriptor, value) for descriptor, value in message.ListFields()}


def _plain(descriptor: Any, value: Any) -> Any:
    if _is_map(descriptor):
        return dict(value)
    if descriptor.is_repeated:
        return [_plain_item(descriptor, item) for item in value]
    return _plain_item(descriptor, value)


def _plain_item(descriptor: Any, value: Any) -> Any:
    if isinstance(value, Struct):
        # Seldom needed, and slow to import.
        from google.protobuf.json_format import MessageToDict

        return MessageToDict(value)
    if descriptor.message_type is not None:
        return spec_to_dict(value)
    if descriptor.enum_type is not None:
        return enum_name(descriptor.enum_type, value).lower()
    return value


def _is_map(descriptor: Any) -> bool:
    return descriptor.message_type is not None and bool(descriptor.message_type.GetOptions().map_entry)


class _WrongValue(Exception):
    """A value does not fit its field."""


class _Reader:
    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.files: list[LocalFile] = []
        self.translations: list[Translation] = []

    def read(self, values: Mapping[str, Any]) -> pb.FineTuningJobSpec:
        spec = pb.FineTuningJobSpec()
        if isinstance(values, Mapping):
            translated = translate(values, JOB_RULES)
            for path, (_, reason) in translated.lost.items():
                self.refuse(f"spec.{path}", reason)
            self.violations += translated.conflicts
            self.translations = translated.changed
            values = translated.values
        self.read_message(spec, values, "spec")
        return spec

    def refuse(self, path: str, description: str) -> None:
        self.violations.append(Violation(path, description))

    def refused(self, path: str) -> bool:
        return any(violation.field.startswith(path) for violation in self.violations)

    def read_message(self, message: Message, values: Any, path: str) -> None:
        if not isinstance(values, Mapping):
            self.refuse(path, f"must be a table of names and values, not {values!r}")
            return
        if isinstance(message, Struct):
            self.read_object(message, values, path)
            return
        descriptor: Any = message.DESCRIPTOR
        self.refuse_two_of_a_oneof(descriptor, values, path)
        for key, value in values.items():
            if key not in descriptor.fields_by_name:
                self.refuse(f"{path}.{key}", _unknown(str(key), descriptor))
            elif value is not None:
                self.read_field(message, descriptor.fields_by_name[key], value, f"{path}.{key}")

    def refuse_two_of_a_oneof(self, descriptor: Any, values: Mapping[str, Any], path: str) -> None:
        """The message would keep the last one only, and the server could not know of the others."""
        for oneof in descriptor.oneofs:
            given = [field.name for field in oneof.fields if values.get(field.name) is not None]
            if len(given) > 1:
                self.refuse(path, f"has {' and '.join(given)}, which cannot be combined; set one of them")

    def read_object(self, message: Struct, values: Mapping[str, Any], path: str) -> None:
        """Reads a table of any form, as JSON has it."""
        try:
            # Through JSON, so that tuples and numbers are what the server will read.
            message.update(json.loads(json.dumps(values, allow_nan=False)))
        except (TypeError, ValueError) as error:
            self.refuse(path, f"must hold what JSON can hold: {error}")

    def read_field(self, message: Message, descriptor: Any, value: Any, path: str) -> None:
        target: Any = getattr(message, descriptor.name)
        if descriptor.name in _SOURCES:
            self.read_sources(target, value, path)
        elif descriptor.name in _SETS and isinstance(value, (str, PathLike)):
            if value in _SETS[descriptor.name] or is_dataset_id(value):
                setattr(message, descriptor.name, value)
            else:
                self.read_file(message, descriptor.name, value, path)
        elif _is_map(descriptor):
            self.read_map(target, descriptor, value, path)
        elif descriptor.is_repeated:
            self.read_list(target, descriptor, value, path)
        elif descriptor.message_type is not None:
            if descriptor.containing_oneof is not None:
                # An empty table chooses it too.
                target.SetInParent()
            if descriptor.name == "hub" and isinstance(value, Mapping) and not value:
                # Read as unset, it would push nothing.
                self.refuse(path, 'is empty; name the repository, as in repo_id = "owner/name", or remove it')
            self.read_message(target, value, path)
        else:
            try:
                setattr(message, descriptor.name, _scalar(descriptor, value))
            except (_WrongValue, ValueError, TypeError) as error:
                self.refuse(path, str(error))

    def read_list(self, target: Any, descriptor: Any, value: Any, path: str) -> None:
        if value == _EVERY_LAYER and descriptor.name == "target_modules":
            # peft's name for the default. As a list it replaces the list of a recipe.
            value = [value]
        if isinstance(value, str) or not isinstance(value, Sequence):
            example = f', such as ["{value.split(",")[0]}"]' if isinstance(value, str) and value else ""
            self.refuse(path, f"must be a list{example}, not {value!r}")
            return
        for index, item in enumerate(value):
            if descriptor.message_type is not None:
                self.read_message(target.add(), item, f"{path}[{index}]")
                continue
            try:
                target.append(_scalar(descriptor, item))
            except (_WrongValue, ValueError, TypeError) as error:
                self.refuse(f"{path}[{index}]", str(error))

    def read_map(self, target: Any, descriptor: Any, value: Any, path: str) -> None:
        if not isinstance(value, Mapping):
            self.refuse(path, f"must be a table of names and values, not {value!r}")
            return
        item = descriptor.message_type.fields_by_name["value"]
        for key, entry in value.items():
            try:
                target[key] = _scalar(item, entry)
            except (_WrongValue, ValueError, TypeError) as error:
                self.refuse(f"{path}.{key}", str(error))

    def read_sources(self, target: Any, value: Any, path: str) -> None:
        """Reads one source or a list of sources. A source is a path, a dataset id, a dataset on the hub, or a table
        with `dataset` in it. A folder becomes one source for each of its files."""
        sources = [value] if isinstance(value, (str, PathLike, Mapping)) else value
        if not isinstance(sources, Sequence):
            self.refuse(path, f"must be a path, a dataset id, or a list of these, not {value!r}")
            return
        for index, source in enumerate(sources):
            table = dict(source) if isinstance(source, Mapping) else {"dataset": source}
            place, where = table.get("dataset"), f"{path}[{index}]"
            folder = None
            if isinstance(place, (str, PathLike)) and place and not is_dataset_id(place):
                folder = Path(place).expanduser()
            if folder is None or not folder.is_dir():
                self.read_source(target.add(), table, where)
                continue
            for relative, file in self.rows_of_folder(folder, f"{where}.dataset"):
                self.read_source(target.add(), {**table, "dataset": file}, where, f"{folder.resolve().name}/{relative}")

    def rows_of_folder(self, folder: Path, path: str) -> list[tuple[str, Path]]:
        """Returns the files of a folder with their relative paths. Refuses a folder with other files or without any."""
        files, others = files_of_folder(folder)
        if others:
            shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
            self.refuse(
                path, f"{str(folder)!r} has files that are no rows: {shown}; move them, or name the files to use"
            )
        elif not files:
            self.refuse(path, f"{str(folder)!r} has no files of rows")
        return [] if others else files

    def read_source(self, message: pb.DataSource, table: dict[str, Any], path: str, display_name: str = "") -> None:
        place = table.get("dataset")
        if isinstance(place, (str, PathLike)) and not is_dataset_id(place):
            # The id is unknown until the file is uploaded; until then the field stays empty.
            table["dataset"] = ""
            self.read_file(message, "dataset", place, f"{path}.dataset", display_name)
        elif not place:
            self.refuse(f"{path}.dataset", "required: a file, a dataset id or hf://owner/name")
        self.read_message(message, table, path)

    def read_file(
        self, message: Message, name: str, place: str | PathLike[str], path: str, display_name: str = ""
    ) -> None:
        if isinstance(place, str) and "://" in place:
            self.refuse(
                path,
                f"{place!r} is not a local file, a dataset id or hf://owner/name; download the file and name it here",
            )
            return
        file = Path(place).expanduser()
        if not file.exists():
            known = " or ".join(filter(None, _SETS.get(name, ())))
            hint = f"; {known} is a set of its own" if known else ", a dataset on the hub with `hf://`"
            self.refuse(path, f"no such file: {str(file.absolute())!r} (a dataset id starts with `ds_`{hint})")
        elif not file.is_file():
            self.refuse(path, f"{str(file)!r} is not a file")
        else:
            try:
                self.files.append(LocalFile(message, name, utf8_path(file), display_name[-128:]))
            except InvalidArgument as error:
                self.refuse(path, error.message)


def is_dataset_id(place: str | PathLike[str]) -> bool:
    """Returns True for an id of the server or the hub. A local file of the same name takes precedence."""
    return isinstance(place, str) and place.startswith(("ds_", "hf://")) and not Path(place).exists()


def _unknown(key: str, descriptor: Any) -> str:
    key = _SHORT_FORMS.get(key, key)
    here = _names(descriptor)
    for section in _SECTIONS:
        inner: Any = pb.FineTuningJobSpec.DESCRIPTOR.fields_by_name[section].message_type
        if inner is not descriptor and key in _names(inner):
            return f"{_NO_SUCH_FIELD}; did you mean `{field_path(f'{section}.{key}', JOB_RULES)}`?"
    if descriptor is not pb.FineTuningJobSpec.DESCRIPTOR and key in pb.FineTuningJobSpec.DESCRIPTOR.fields_by_name:
        return f"{_NO_SUCH_FIELD}; `{key}` belongs at the top level"
    fields = sorted(descriptor.fields_by_name)
    listed = f"fields here: {', '.join(fields)}" if fields else "this table takes no settings, leave it empty"
    found = nearest(key, here) or _with_a_word_of(key, fields) or f"; {listed}"
    return f"{_NO_SUCH_FIELD}{found}"


def _with_a_word_of(key: str, fields: Sequence[str]) -> str:
    """Returns `; did you mean x?` if only x has a long word of the key, as early_stopping_patience of patience."""
    words = {word for word in key.split("_") if len(word) >= _LONG_WORD}
    found = [field for field in fields if words & {*field.split("_")}]
    return f"; did you mean `{found[0]}`?" if len(found) == 1 else ""


def _names(descriptor: Any) -> list[str]:
    """Returns the names that a table may use: the fields, then their other names."""
    top = descriptor is pb.FineTuningJobSpec.DESCRIPTOR
    fields: Any = pb.FineTuningJobSpec.DESCRIPTOR.fields_by_name
    others = [n for n, rule in JOB_RULES.items() if top or (rule.home and fields[rule.home].message_type is descriptor)]
    return list(dict.fromkeys([*descriptor.fields_by_name, *others]))


def _scalar(descriptor: Any, value: Any) -> Any:
    """Converts a value to the type of a scalar field. Text is read as a number or boolean if the field is one, so that
    `${VAR}` in a TOML file works in any field."""
    kind = descriptor.cpp_type
    if descriptor.enum_type is not None:
        try:
            return enum_number(descriptor.enum_type, value, descriptor.name)
        except InvalidArgument as error:
            raise _WrongValue(error.violations[0].description) from None
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        truth = {"true": True, "false": False}.get(value.lower()) if isinstance(value, str) else value
        if not isinstance(truth, bool):
            raise _WrongValue(f"must be true or false, not {value!r}")
        return truth
    if kind in _INTEGERS | _FLOATS:
        number = _number(value)
        if kind in _FLOATS:
            return number
        if not number.is_integer():
            raise _WrongValue(f"must be a whole number, not {value!r}")
        return value if isinstance(value, int) else int(number)
    if not isinstance(value, str):
        raise _WrongValue(f"must be text, not {value!r}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise _WrongValue(f"must be a number, not {value!r}")
    try:
        return float(value)
    except (ValueError, OverflowError):
        raise _WrongValue(f"must be a number, not {value!r}") from None
