"""Settings of a job on the command line: a file in TOML, YAML or JSON, and `--set`."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from finetuneflow.cli.text_files import read_text
from finetuneflow.errors import InvalidArgument, Violation
from finetuneflow.setting_names import JOB_RULES, TOKENS, NoCounterpart, Rule, field_path

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_MISSPELT_VARIABLE = re.compile(r"\$(\{\s*\w*\s*\}|\w+)")
_SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(API|ACCESS|PRIVATE|SECRET)_?KEY)$", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"(hf_|ftf_|sk-)\S{8}")
_Read = Callable[[str], Any]


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of version 1.2, and without repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        _refuse_repeated([str(key) for key in keys])
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


# PyYAML reads 1e-4, without a dot, as text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _read_yaml(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _read_json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _refuse_repeated([key for key, _ in pairs])
        return dict(pairs)

    return json.loads(text, object_pairs_hook=unique)


def _refuse_repeated(keys: Sequence[str]) -> None:
    repeated = [key for number, key in enumerate(keys) if key in keys[:number]]
    if repeated:
        raise ValueError(f"the key {repeated[0]!r} is set twice; set it once")


_FORMATS: Mapping[str, tuple[str, _Read]] = {
    ".json": ("JSON", _read_json),
    ".yaml": ("YAML", _read_yaml),
    ".yml": ("YAML", _read_yaml),
}
CONFIG_HELP = "File with the fields of the job: TOML, or YAML or JSON by its extension."


def read_config(path: Path) -> dict[str, Any]:
    """Reads a file of settings. `${VAR}` is replaced from the environment, the text "null" means None, and relative
    paths of datasets are relative to the folder of the file. Raises InvalidArgument and OSError."""
    text, values = read_table(path)
    violations: list[Violation] = []
    try:
        resolved = _resolve(values, "", _Places(path.name, text), violations)
    except RecursionError as error:
        raise _too_deep(path) from error
    if violations:
        raise InvalidArgument(f"{path} is invalid.", reason="INVALID_CONFIG", violations=violations)
    _anchor(resolved, path.parent)
    return dict(resolved)


def read_table(path: Path) -> tuple[str, dict[str, Any]]:
    """Returns the text of a file in TOML, YAML or JSON, and the table in it. Raises InvalidArgument and OSError."""
    text = read_text(path)
    name, read = _FORMATS.get(path.suffix.lower(), ("TOML", tomllib.loads))
    try:
        values = read(text)
    except RecursionError as error:
        raise _too_deep(path) from error
    except ValueError as error:
        # Raised for invalid text, and for a number with thousands of digits.
        raise _refuse(path.name, f"is not valid {name}: {error}; correct it there") from error
    if values is None:
        return text, {}
    if not isinstance(values, dict):
        raise _refuse(path.name, "must be a table of names and values")
    return text, values


def _too_deep(path: Path) -> InvalidArgument:
    return _refuse(path.name, "tables and lists are nested too deeply; a job needs at most four levels")


def apply_setting(values: dict[str, Any], setting: str) -> None:
    """Applies a setting such as `lora.r=32` to `values`. The value is read as TOML, or as a list or object of JSON, or
    as text if it is neither. It replaces the field also where `values` have it by another name. A leading `spec.` is
    ignored: messages name fields with it."""
    name, equals, raw = setting.partition("=")
    keys = name.strip().removeprefix("spec.").split(".")
    if not equals or not all(keys):
        raise _refuse(f"--set {setting}", "must be name=value, such as --set lora.r=32")
    remove_field(values, field_path(".".join(keys), JOB_RULES))
    table = values
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise _refuse(f"--set {setting}", f"`{key}` is a value, not a table; remove one of the two settings")
    table[keys[-1]] = _value_of(raw.strip())


def override(values: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Sets the fields at the top level that have a value, also where `values` have them by another name."""
    for name, value in fields.items():
        if value:
            remove_field(values, name)
            values[name] = value


def _decided(rule: Rule, values: Mapping[str, Any]) -> Iterable[str]:
    """Returns the paths that the names of a rule decide, as far as `values` have them at the top level."""
    given = {name: values[name] for name in rule.names if values.get(name) is not None}
    try:
        return rule.convert(given).sets if given else ()
    except NoCounterpart:
        return ()


def remove_field(values: dict[str, Any], path: str) -> None:
    """Removes a scalar field by all its names, those included that decide it together, such as bf16 and fp16."""
    for rule in dict.fromkeys(JOB_RULES.values()):
        if len(rule.names) > 1 and path in _decided(rule, values):
            for name in rule.names:
                values.pop(name, None)
    for key in list(values):
        section = values[key]
        if isinstance(section, dict):
            for name in [name for name in section if field_path(f"{key}.{name}", JOB_RULES) == path]:
                del section[name]
        elif field_path(key, JOB_RULES) == path:
            del values[key]


def toml_text(values: Mapping[str, Any], prefix: str = "") -> str:
    """Formats a table as TOML."""
    plain = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    lines = [f"{_toml_key(key)} = {_toml_literal(value)}" for key, value in plain.items() if value is not None]
    for key, table in values.items():
        if isinstance(table, Mapping):
            name = prefix + _toml_key(key)
            lines += ["", f"[{name}]", toml_text(table, f"{name}.")]
    return "\n".join(lines).strip("\n")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _toml_literal(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(key)} = {_toml_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_toml_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _value_of(raw: str) -> Any:
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except (ValueError, RecursionError):
        value = _list_or_object(raw) if raw.startswith(("[", "{")) else raw
    return None if value == "null" else value


def _list_or_object(raw: str) -> Any:
    """Returns a list or an object of JSON; other text as it is."""
    try:
        return _read_json(raw)
    except (ValueError, RecursionError):
        return raw


class _Places:
    """The places of environment variables in a file."""

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._lines: dict[str, list[int]] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if not line.lstrip().startswith("#"):
                for name in _VARIABLE.findall(line):
                    self._lines.setdefault(name, []).append(number)

    def next(self, name: str) -> str:
        """Returns the place where a variable is named next: values are read in the order of the file."""
        lines = self._lines.get(name, [])
        line = lines.pop(0) if len(lines) > 1 else next(iter(lines), 0)
        return f"{self._file}, line {line}" if line else self._file


def _resolve(value: Any, key: str, places: _Places, violations: list[Violation]) -> Any:
    if isinstance(value, dict):
        return {k: _resolve(v, f"{key}.{k}" if key else k, places, violations) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolve(item, f"{key}[{i}]", places, violations) for i, item in enumerate(value)]
    if not isinstance(value, str):
        return value
    missing = []
    for name in _VARIABLE.findall(value):
        if _SECRET.search(name) or _SECRET_VALUE.match(os.environ.get(name, "")):
            violations.append(Violation(key, f"the environment variable {name} looks like a secret; {TOKENS}"))
        elif name not in os.environ:
            place = places.next(name)
            missing.append(Violation(key, f"the environment variable {name} is not set ({place}); export it"))
    violations += dict.fromkeys(missing)
    if _MISSPELT_VARIABLE.fullmatch(value) and not _VARIABLE.fullmatch(value):
        violations.append(Violation(key, f"{value!r} is no environment variable; write ${{NAME}}"))
    replaced = _VARIABLE.sub(lambda match: os.environ.get(match[1], ""), value)
    return None if replaced == "null" else replaced


def _anchor(values: dict[str, Any], folder: Path) -> None:
    for name in ("training_data", "evaluation_data"):
        if name in values:
            sources = values[name] if isinstance(values[name], list) else [values[name]]
            values[name] = [_anchored(source, folder) for source in sources]
    if isinstance(evaluation := values.get("evaluation"), dict):
        for name in ("questions", "regression"):
            if evaluation.get(name) not in (None, "", "general", "none"):
                evaluation[name] = _anchored(evaluation[name], folder)
    for phase in values.get("phases") or []:
        if isinstance(phase, dict):
            _anchor(phase, folder)


def _anchored(source: Any, folder: Path) -> Any:
    if isinstance(source, dict) and "dataset" in source:
        return {**source, "dataset": _anchored(source["dataset"], folder)}
    if isinstance(source, str) and not source.startswith("ds_") and "://" not in source:
        return str(folder / Path(source).expanduser())
    return source


def _refuse(field: str, description: str) -> InvalidArgument:
    return InvalidArgument(
        "The job's settings cannot be read.", reason="INVALID_CONFIG", violations=[Violation(field, description)]
    )
