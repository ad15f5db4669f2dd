"""`ftf import-config`: files of other training programs as job files."""

from __future__ import annotations

import json as json_module
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from finetuneflow.cli.config import read_table, toml_text
from finetuneflow.cli.console import visible
from finetuneflow.cli.foreign.accelerate import ACCELERATE
from finetuneflow.cli.foreign.axolotl import AXOLOTL
from finetuneflow.cli.foreign.deepspeed import DEEPSPEED
from finetuneflow.cli.foreign.llama_factory import LLAMA_FACTORY
from finetuneflow.cli.foreign.program import Program
from finetuneflow.cli.foreign.trl import TRL
from finetuneflow.cli.session import Json, session
from finetuneflow.enums import nearest
from finetuneflow.errors import InvalidArgument, Violation
from finetuneflow.setting_names import Translation, shown, translate

_BEST = "load_best_model_at_end"
_LAST_STEP = (
    "the result is the best checkpoint by eval_loss if there are held-out rows; without load_best_model_at_end, {} "
    "takes the last step"
)
# TRL first: it is recognized by having no names of the others.
_PROGRAMS = {program.name: program for program in (TRL, AXOLOTL, LLAMA_FACTORY, DEEPSPEED, ACCELERATE)}


class _Name(StrEnum):
    TRL = "trl"
    AXOLOTL = "axolotl"
    LLAMA_FACTORY = "llama-factory"
    DEEPSPEED = "deepspeed"
    ACCELERATE = "accelerate"


@dataclass(frozen=True)
class Imported:
    """A file of another program as a job."""

    program: Program
    values: dict[str, Any]
    """The settings, as a job file has them."""
    translations: list[Translation]
    defaults: dict[str, Any]
    """The program's own defaults for what the file does not set: path in the spec → value. They are in `values`."""
    lost: dict[str, tuple[Any, str]]
    """Path in the file → value and the reason why nothing expresses it."""
    unset: list[str]
    """Names that the file has without a value; the program's defaults apply."""
    differences: list[str]
    """Differences between the job and a run of the program with this file that no setting in the file shows."""


def import_config(
    ctx: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="YAML, JSON or TOML file.", exists=True, dir_okay=False, show_default=False)
    ],
    program: Annotated[
        _Name | None,
        typer.Option("--from", help="Program that the file is for.", show_default="recognized by its names"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Job file to write.", show_default="standard output", dir_okay=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file of --out.")] = False,
    json: Json = False,
) -> None:
    """Convert a configuration of Axolotl, LLaMA-Factory, TRL, DeepSpeed or Accelerate to a job file of `ftf train`.

    Every name in the file is translated, implied, or listed as without counterpart with the reason.
    """
    if out is not None and out.exists() and not force:
        raise typer.BadParameter(f"{out} exists; name another file, or overwrite it with --force.", param_hint="--out")
    _, table = read_table(file)
    imported = read_foreign(table, _PROGRAMS[program] if program else recognized(table), file)
    if others := [name for name in imported.lost if name in imported.program.objective]:
        # The rest of the file would be another training.
        raise InvalidArgument(
            f"{file} is not for a training that is available here.",
            reason="INVALID_CONFIG",
            violations=[Violation(name, "{!r} given; {}".format(*imported.lost[name])) for name in others],
        )
    if out is not None:
        _place(imported.values, out.parent)
        out.write_text(f"{job_file(imported, file.name)}\n", encoding="utf-8")
    console = session(ctx).console
    if json:
        console.file.write(visible(json_module.dumps(_fields(imported), ensure_ascii=False, default=str)) + "\n")
    elif out is None:
        console.print(job_file(imported, file.name))
    else:
        console.print("\n".join(_report(imported)))
        console.print(f"Wrote {out}")


def recognized(table: Mapping[str, Any]) -> Program:
    """Returns the program with the most names of its own in a file; TRL if there are none, which has few. Raises
    InvalidArgument if no program knows any of the names."""
    if not any(table.keys() & program.rules.keys() for program in _PROGRAMS.values()):
        programs = ", ".join(program.title for program in _PROGRAMS.values())
        message = f"The file has no setting of {programs}. Name its program with --from if it is one of them."
        raise InvalidArgument(message, reason="INVALID_CONFIG")
    return max(_PROGRAMS.values(), key=lambda program: len(program.marks & table.keys()))


def read_foreign(table: Mapping[str, Any], program: Program, file: Path) -> Imported:
    """Translates the settings of another program. Raises InvalidArgument if two of them contradict each other."""
    known = program.rules
    translated = translate({name: value for name, value in table.items() if name in known}, known)
    if translated.conflicts:
        violations = [Violation(each.field.removeprefix("spec."), each.description) for each in translated.conflicts]
        raise InvalidArgument(f"{file} contradicts itself.", reason="INVALID_CONFIG", violations=violations)
    lost = dict(translated.lost)
    for name, value in table.items():
        if name not in known and value is not None:
            lost[name] = (value, f"{program.title}'s setting is not known here{nearest(name, list(known), 0.85)}")
    lost |= {name: (None, why) for name, why in program.nulls.items() if name in table and table[name] is None}
    values = {name: value for name, value in translated.values.items() if value is not None}
    # The file has a value for these, even if it cannot be translated.
    decided = {path for name in lost if name in known for path in (known[name].renames, known[name].decides)}
    defaults = {path: value for path, value in _defaults(program, values).items() if path not in decided}
    for path, value in defaults.items():
        section, _, name = path.rpartition(".")
        (values.setdefault(section, {}) if section else values)[name] = value
    unset = [name for name, value in table.items() if value is None and name not in lost]
    # A program without that setting does not train by itself.
    last = table.get(_BEST) is None and _BEST in known
    differences = [_LAST_STEP.format(program.title)] if last else []
    return Imported(program, values, translated.translations, defaults, lost, unset, differences)


def _defaults(program: Program, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the program's defaults for the fields that a file leaves unset and that its job uses."""
    found = dict(program.defaults)
    program.adjust(values, found)
    method = values.get("method", found.get("method"))
    hyper = values.get("hyperparameters", {})
    unused = {"hyperparameters.warmup_ratio"} if "warmup_steps" in hyper else set()
    unused |= {"hyperparameters.num_epochs"} if "max_steps" in hyper else set()
    unused |= {"holdout_fraction"} if values.get("evaluation_data") else set()
    used = ("lora.", "quantization.") if method == "qlora" else ("lora.",) if method == "lora" else ()
    return {
        path: value
        for path, value in found.items()
        if path not in unused
        and (not path.startswith(("lora.", "quantization.")) or path.startswith(used))
        and _at(values, path) is None
    }


def _at(values: Mapping[str, Any], path: str) -> Any:
    section, _, name = path.rpartition(".")
    table = values.get(section, {}) if section else values
    return table.get(name) if isinstance(table, Mapping) else None


def job_file(imported: Imported, name: str) -> str:
    """Returns the job file, with the report as comments."""
    head = [f"Imported from {name} ({imported.program.title}).", *_report(imported)]
    comments = [f"# {line}".rstrip() for part in head for line in visible(part).splitlines() or [""]]
    return "\n".join([*comments, "", toml_text(imported.values)])


def _report(imported: Imported) -> list[str]:
    """Returns the lines about what was translated, implied, added and lost."""
    translated = [str(each) for each in imported.translations if each.sets]
    implied = [str(each) for each in imported.translations if not each.sets]
    added = [shown({path: value}) for path, value in imported.defaults.items()]
    lost = [f"{shown({path: value})}: {reason}" for path, (value, reason) in imported.lost.items()]
    lines = []
    for title, entries in (
        ("Translated:", translated),
        ("Implied:", implied),
        ("Without a value in the file:", [", ".join(imported.unset)] if imported.unset else []),
        (f"Defaults of {imported.program.title} that the file leaves unset:", added),
        ("Without counterpart:", lost),
        ("Different here:", imported.differences),
    ):
        if entries:
            lines += ["", title, *(f"  {entry}" for entry in entries)]
    missing = [name for name in ("base_model", "training_data") if not imported.values.get(name)]
    if missing:
        lines += ["", f"Not in the file: {' and '.join(missing)}. Use `ftf train DATA --model MODEL --config FILE`."]
    return lines


def _fields(imported: Imported) -> dict[str, Any]:
    return {
        "program": imported.program.name,
        "config": imported.values,
        "translations": [each.to_dict() for each in imported.translations],
        "unset": imported.unset,
        "defaults": imported.defaults,
        "differences": imported.differences,
        "without_counterpart": [
            {"field": path, "value": value, "reason": reason} for path, (value, reason) in imported.lost.items()
        ],
    }


def _place(values: dict[str, Any], folder: Path) -> None:
    """Makes paths of files relative to the folder of the job file; those in the imported file start at this one."""
    for name in ("training_data", "evaluation_data"):
        for source in values.get(name, []):
            place = source.get("dataset") if isinstance(source, dict) else None
            if place and "://" not in place and not Path(place).expanduser().is_absolute():
                source["dataset"] = os.path.relpath(place, folder)
