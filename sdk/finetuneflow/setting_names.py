"""Other names and forms of a job's settings, and their translation to the fields of a FineTuningJobSpec.

A rule translates the values of one or more names that belong together. The same mechanism reads job files with the
names of older configurations (`JOB_RULES`) and imports the files of other programs (`finetuneflow.cli.foreign`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetuneflow.errors import Violation
from finetuneflow.v1 import fine_tuning_job_spec_pb2 as pb

_FLAT_SECTIONS = ("hyperparameters", "lora", "quantization")
"""Sections whose fields may stand at the top level, as in the flat files of other programs."""


class NoCounterpart(Exception):
    """A value that no setting of a job expresses; the message is the reason, and says what to do."""


@dataclass(frozen=True)
class Outcome:
    """Translation of the values of a rule's names."""

    sets: Mapping[str, Any] = field(default_factory=dict)
    """Path in the spec → value. Empty: nothing has to be set, for the reason in `note`."""
    note: str = ""
    """Explanation for the caller."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """Parts of the value that `sets` does not express → reason. The part "" is the value as a whole."""


Convert = Callable[[Mapping[str, Any]], Outcome]


@dataclass(frozen=True)
class Rule:
    """The translation of names that are read together."""

    names: tuple[str, ...]
    convert: Convert
    """Gets the values of those names that are set. Raises NoCounterpart."""
    home: str = ""
    """Section in which the names may stand; they may always stand at the top level."""
    renames: str = ""
    """The path, if the rule is just another name of one field."""
    decides: str = ""
    """The path, if the names decide one field that they are not names of."""
    hidden: bool = False
    """True if the value may be a secret and is never shown."""


Rules = Mapping[str, Rule]
"""Name → its rule."""


@dataclass(frozen=True)
class Translation:
    """The translation of one rule: a translated, unchanged or implied setting."""

    given: Mapping[str, Any]
    """Path in the file → value."""
    sets: Mapping[str, Any]
    """Path in the spec → value; empty if implied."""
    note: str = ""

    def __str__(self) -> str:
        left = shown(self.given)
        if not self.sets:
            return f"{left}: {self.note}"
        return f"{left} → {shown(self.sets)}" + (f" ({self.note})" if self.note else "")

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        return {"given": dict(self.given), "sets": dict(self.sets), "note": self.note}


@dataclass
class Translated:
    """The result of a translation."""

    values: dict[str, Any]
    """The table with the spec's own names. Names without a rule are unchanged."""
    translations: list[Translation] = field(default_factory=list)
    lost: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """Path in the file → value and the reason why nothing expresses it."""
    conflicts: list[Violation] = field(default_factory=list)

    @property
    def changed(self) -> list[Translation]:
        """The translations without those of values that stay as they are."""
        return [each for each in self.translations if each.given != each.sets]


def translate(values: Mapping[str, Any], rules: Rules) -> Translated:
    """Translates a table. None means unset. Nothing is raised: see `lost` and `conflicts`."""
    rest = {
        key: dict(value) if key in _FLAT_SECTIONS and isinstance(value, Mapping) else value
        for key, value in values.items()
    }
    found = Translated(rest)
    outcomes: list[tuple[Rule, dict[str, Any], Outcome]] = []
    for rule in dict.fromkeys(rules.values()):
        paths = {path: name for name in rule.names for path in _places(rest, name, rule.home)}
        given = {path: _take(rest, path) for path in paths}
        given = {path: value for path, value in given.items() if value is not None}
        if not given:
            continue
        named = {paths[path]: value for path, value in given.items()}
        if len(named) < len(given):
            found.conflicts += [_conflict(path, f"is set at {' and at '.join(given)}") for path in list(given)[:1]]
            continue
        try:
            outcome = rule.convert(named)
        except NoCounterpart as error:
            found.lost |= {path: ("(hidden)" if rule.hidden else value, str(error)) for path, value in given.items()}
        else:
            outcomes.append((rule, given, outcome))
    # The spec's own names first: what is set by another name as well is reported at the other name.
    for rule, given, outcome in sorted(outcomes, key=lambda each: each[1].keys() != each[2].sets.keys()):
        first = next(iter(given))
        for part, why in outcome.lost.items():
            found.lost[first + part] = (_part(given[first], part), why)
        for path, value in outcome.sets.items():
            _put(found, rule, first, path, value)
        if outcome.sets or not outcome.lost:
            found.translations.append(Translation(given, outcome.sets, outcome.note or "empty" * (not outcome.sets)))
    for name in _FLAT_SECTIONS:
        if rest.get(name) == {} and values.get(name) != {}:
            del rest[name]
    return found


def field_path(path: str, rules: Rules) -> str:
    """Returns the path of the field that `path` is a name of; `path` itself if it is no other name."""
    section, _, name = path.rpartition(".")
    rule = rules.get(name)
    return rule.renames if rule and rule.renames and section in ("", rule.home) else path


def shown(values: Mapping[str, Any]) -> str:
    """Formats paths with their values: `lora.r = 8, lora.lora_alpha = 16`."""
    return ", ".join(f"{path} = {json.dumps(value, ensure_ascii=False, default=str)}" for path, value in values.items())


def _places(values: Mapping[str, Any], name: str, home: str) -> Iterable[str]:
    if name in values and not (name in _FLAT_SECTIONS and isinstance(values[name], Mapping)):
        yield name
    section = values.get(home) if home else None
    if isinstance(section, Mapping) and name in section:
        yield f"{home}.{name}"


def _take(values: dict[str, Any], path: str) -> Any:
    section, _, name = path.rpartition(".")
    return (values[section] if section else values).pop(name)


def _put(found: Translated, rule: Rule, given: str, path: str, value: Any) -> None:
    section, _, name = path.rpartition(".")
    table = found.values.setdefault(section, {}) if section else found.values
    if not isinstance(table, dict):
        # The reader refuses what stands there.
        return
    present = table.get(name)
    if present is not None and rule.renames and given != path:
        found.conflicts.append(_conflict(given, f"is another name of `{name}`, which is set too"))
    elif present is not None and present != value:
        found.conflicts.append(_conflict(given, f"sets {shown({path: value})}, but it is {shown({'': present})[3:]}"))
    else:
        table[name] = value


def _conflict(path: str, problem: str) -> Violation:
    return Violation(f"spec.{path}", f"{problem}; set one of them")


def _part(value: Any, part: str) -> Any:
    """Returns the part of a value at a path such as `[0].split`."""
    for key in filter(None, part.replace("[", ".").replace("]", "").split(".")):
        if isinstance(value, list) and key.isdecimal():
            value = value[int(key)]
        else:
            value = value.get(key) if isinstance(value, Mapping) else None
    return value


def rename(path: str, *names: str, values: Mapping[Any, Any] | None = None, home: str | None = None) -> list[Rule]:
    """Returns a rule for each name of the field at `path`. `values` maps other forms of values to ours."""

    def convert(given: Mapping[str, Any]) -> Outcome:
        (value,) = given.values()
        return Outcome({path: value if values is None else values.get(_key(value), value)})

    home = path.rpartition(".")[0] if home is None else home
    return [Rule((name,), convert, home, renames=path) for name in names]


def implied(name: str, accepted: Iterable[Any], note: str, otherwise: str, home: str = "hyperparameters") -> Rule:
    """Returns a rule for a setting that has one value here. Other values than those accepted have no counterpart."""
    allowed = list(accepted)

    def convert(given: Mapping[str, Any]) -> Outcome:
        (value,) = given.values()
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed):
            raise NoCounterpart(otherwise)
        return Outcome(note=note)

    return Rule((name,), convert, home)


def without(why: str, *names: str, hidden: bool = False, off: Iterable[Any] = ()) -> list[Rule]:
    """Returns rules for names that have no counterpart. The values in `off` ask for nothing."""
    unused = [False, "", [], {}, *off]

    def convert(given: Mapping[str, Any]) -> Outcome:
        (value,) = given.values()
        if any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in unused):
            return Outcome(note="off here too")
        raise NoCounterpart(why)

    return [Rule((name,), convert, "hyperparameters", hidden=hidden) for name in names]


def table(*rules: Rule | Iterable[Rule]) -> dict[str, Rule]:
    """Returns the rules by name; a later rule replaces the earlier ones that share a name with it."""
    found: dict[str, Rule] = {}
    for rule in (rule for each in rules for rule in ([each] if isinstance(each, Rule) else each)):
        for replaced in {found[name] for name in rule.names if name in found}:
            for name in replaced.names:
                del found[name]
        found |= dict.fromkeys(rule.names, rule)
    return found


def _key(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value if isinstance(value, (bool, int, float)) else None


def is_true(value: Any) -> bool:
    """Returns True for true, also as text, which `${VAR}` gives."""
    return value is True or (isinstance(value, str) and value.lower() == "true")


def is_false(value: Any) -> bool:
    """Returns True for false, also as text."""
    return value is False or (isinstance(value, str) and value.lower() == "false")


def _truth(name: str, value: Any) -> bool:
    if is_true(value) or is_false(value):
        return is_true(value)
    raise NoCounterpart(f"{name} must be true or false, not {value!r}")


def precision(given: Mapping[str, Any]) -> Outcome:
    """Translates `bf16` and `fp16`."""
    path = "hyperparameters.precision"
    if given.get("bf16") == "auto" and not is_true(given.get("fp16")):
        return Outcome({path: "auto"})
    on = {name: _truth(name, value) for name, value in given.items()}
    if on.get("bf16") and on.get("fp16"):
        raise NoCounterpart("bf16 and fp16 exclude each other; set one of them")
    if on.get("bf16") or on.get("fp16"):
        return Outcome({path: "bf16" if on.get("bf16") else "fp16"})
    if "bf16" not in on:
        raise NoCounterpart("fp16 = false alone leaves the precision open; set hyperparameters.precision")
    return Outcome({path: "fp32"})


def quantized_loading(given: Mapping[str, Any]) -> Outcome:
    """Translates `load_in_4bit` and `load_in_8bit`, beside the job's own `method`."""
    method = given.get("method")
    loads = {name: _truth(name, value) for name, value in given.items() if name != "method"}
    if not loads:
        return Outcome({"method": method})
    chosen = [name for name, on in loads.items() if on]
    if len(chosen) > 1:
        raise NoCounterpart("load_in_4bit and load_in_8bit exclude each other; set one of them")
    if not chosen:
        if method == "qlora":
            raise NoCounterpart("method qlora trains on quantized weights; set method to lora")
        return Outcome({"method": "lora" if method in (None, "auto") else method}, "no quantization")
    if method not in (None, "auto", "qlora"):
        raise NoCounterpart(f"method {method} does not quantize the base weights; set method to qlora")
    return Outcome({"method": "qlora", "quantization.bits": 4 if chosen == ["load_in_4bit"] else 8})


def checkpointing(given: Mapping[str, Any]) -> Outcome:
    """Translates `gradient_checkpointing`, whose value may be "unsloth"."""
    (value,) = given.values()
    path = "hyperparameters.gradient_checkpointing"
    if isinstance(value, str) and value.lower() == "unsloth":
        note = "activations are recomputed and not moved to main memory as Unsloth does; the results are the same"
        return Outcome({path: True}, note)
    return Outcome({path: value})


def target_modules(given: Mapping[str, Any]) -> Outcome:
    """Translates `target_modules`, whose value may be "auto"."""
    (value,) = given.values()
    if value == "auto" or value == ["auto"]:
        return Outcome({"lora.target_modules": ["all-linear"]}, "every linear layer except the head")
    return Outcome({"lora.target_modules": value})


def warmup_steps(given: Mapping[str, Any]) -> Outcome:
    """Translates `warmup_steps`, which the transformers library reads as a fraction if it is below 1."""
    (value,) = given.values()
    if isinstance(value, float) and 0 < value < 1:
        return Outcome({"hyperparameters.warmup_ratio": value}, "below 1, so a fraction of all steps")
    return Outcome({"hyperparameters.warmup_steps": value})


def max_steps(given: Mapping[str, Any]) -> Outcome:
    """Translates `max_steps`, whose value -1 means unset."""
    (value,) = given.values()
    if value == -1:
        return Outcome(note="unset; num_epochs applies")
    return Outcome({"hyperparameters.max_steps": value})


def evaluation_strategy(given: Mapping[str, Any]) -> Outcome:
    """Translates `eval_strategy`."""
    (value,) = given.values()
    if value == "steps":
        return Outcome(note="evaluation is every eval_steps steps")
    if value == "no" or value is False:
        return Outcome({"holdout_fraction": 0.0}, "without held-out rows nothing is evaluated while training")
    raise NoCounterpart('evaluation is every eval_steps steps, or at none; set it to "steps", and eval_steps')


def _sampling(given: Mapping[str, Any]) -> Outcome:
    (value,) = given.values()
    if value not in ("random", "group_by_length"):
        raise NoCounterpart("rows are shuffled, or grouped by length; use random or group_by_length")
    return Outcome({"hyperparameters.group_by_length": value == "group_by_length"})


def _initialization(given: Mapping[str, Any]) -> Outcome:
    (value,) = given.values()
    if is_false(value):
        raise NoCounterpart("adapters start so that the model is unchanged; use one of the named initializations")
    return Outcome({"lora.init_lora_weights": "default" if is_true(value) else value})


def _indices(given: Mapping[str, Any]) -> Outcome:
    (value,) = given.values()
    return Outcome({"lora.layers_to_transform": [value] if type(value) is int else value})


def _trackers(given: Mapping[str, Any]) -> Outcome:
    (value,) = given.values()
    names = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else [str(value)]
    wanted = [name for name in names if name != "none"]
    for name in wanted:
        if name != "tensorboard":
            raise NoCounterpart(_TRACKERS.get(str(name), "there is no such tracker here; remove it"))
    if not wanted:
        return Outcome(note="no tracker is used")
    return Outcome({"integrations": [{"tensorboard": {}}]})


def _flat_fields() -> Iterable[Rule]:
    for section in _FLAT_SECTIONS:
        message: Any = pb.FineTuningJobSpec.DESCRIPTOR.fields_by_name[section].message_type
        for name in message.fields_by_name:
            yield from rename(f"{section}.{name}", name)


_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "half": "fp16", "float": "fp32"}
_OPTIMIZERS = {"adamw_bnb_8bit": "adamw_8bit", "paged_adamw": "paged_adamw_32bit"}
OUTPUT = "output_dir"
"""Name of the folder that `ftf train` downloads into."""
_TRACKERS: Mapping[str, str] = {
    "mlflow": 'a tracker needs its address; set integrations = [{mlflow = {tracking_uri = "https://…"}}] instead',
    "wandb": 'a tracker needs a key; set integrations = [{wandb = {secret = "NAME"}}] instead',
    "all": "name the trackers; tensorboard needs no address",
}
_STORED = (
    "the server stores checkpoints and results; `ftf train` downloads the package there when the job has succeeded"
)
TOKENS = "a job's settings are stored, so they name secrets: `ftf secrets set NAME`, and secrets.hub_token = NAME"
_ALWAYS_BEST = "the best checkpoint by eval_loss is always the result"
_RENAMED: Mapping[str, tuple[str, ...]] = {
    "base_model": ("model_name", "base_model_id", "model_name_or_path"),
    "display_name": ("run_name",),
    "hyperparameters.gradient_accumulation_steps": ("grad_accumulation",),
    "hyperparameters.max_length": ("max_seq_length",),
    "hyperparameters.num_epochs": ("num_train_epochs", "epochs"),
    "hyperparameters.per_device_train_batch_size": ("device_train_batch_size", "batch_size"),
    "lora.lora_alpha": ("alpha",),
    "lora.r": ("lora_r",),
    "seed": ("random_seed",),
}

JOB_RULES: Rules = table(
    _flat_fields(),
    *(rename(path, *names) for path, names in _RENAMED.items()),
    rename("hyperparameters.optim", "optim", "optimizer", values=_OPTIMIZERS),
    rename("hyperparameters.lr_scheduler_type", "scheduler"),
    rename("quantization.bnb_4bit_compute_dtype", "bnb_4bit_compute_dtype", values=_DTYPES),
    Rule(("bf16", "fp16"), precision, "hyperparameters"),
    Rule(("load_in_4bit", "load_in_8bit", "method"), quantized_loading, "quantization"),
    Rule(("gradient_checkpointing",), checkpointing, "hyperparameters", "hyperparameters.gradient_checkpointing"),
    Rule(("use_gradient_checkpointing",), checkpointing, "hyperparameters", "hyperparameters.gradient_checkpointing"),
    Rule(("target_modules",), target_modules, "lora", "lora.target_modules"),
    Rule(("warmup_steps",), warmup_steps, "hyperparameters", "hyperparameters.warmup_steps"),
    Rule(("max_steps",), max_steps, "hyperparameters", "hyperparameters.max_steps"),
    Rule(("eval_strategy",), evaluation_strategy, "hyperparameters"),
    Rule(("evaluation_strategy",), evaluation_strategy, "hyperparameters"),
    Rule(("train_sampling_strategy",), _sampling, "hyperparameters"),
    Rule(("init_lora_weights",), _initialization, "lora", "lora.init_lora_weights"),
    Rule(("layers_to_transform",), _indices, "lora", "lora.layers_to_transform"),
    implied("load_best_model_at_end", [True], _ALWAYS_BEST, f"{_ALWAYS_BEST}; remove it"),
    implied("metric_for_best_model", ["eval_loss", "loss"], _ALWAYS_BEST, f"{_ALWAYS_BEST}; remove it"),
    implied("greater_is_better", [False], _ALWAYS_BEST, f"{_ALWAYS_BEST}, which is better if lower; remove it"),
    implied("task_type", ["CAUSAL_LM"], "every model is trained as a causal language model", "use CAUSAL_LM", "lora"),
    implied(
        "save_strategy",
        ["steps"],
        "checkpoints are every save_steps steps",
        'use "steps", and set save_steps',
        "hyperparameters",
    ),
    implied("logging_strategy", ["steps"], "logs are every logging_steps steps", 'use "steps", and set logging_steps'),
    Rule(("report_to",), _trackers, "hyperparameters"),
    Rule((OUTPUT,), lambda _: Outcome(note=_STORED)),
    Rule(
        ("logging_dir",), lambda _: Outcome(note="logs are events of the job: `ftf jobs watch JOB`"), "hyperparameters"
    ),
    without(TOKENS, "hf_token", "hub_token", "token", hidden=True),
    implied(
        "trust_remote_code",
        [False],
        "the code of a model is never run",
        "the code of a model is never run; remove it",
        "",
    ),
)
"""Names of older configurations that a job's table may use beside the spec's own."""
