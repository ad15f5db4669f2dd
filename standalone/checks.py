"""Checks for `ftf doctor` on a machine that runs the complete system."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
from pydantic import ValidationError
from pydantic_settings import SettingsError

from chassis.security import confinement
from engine.catalogue import Catalogue
from engine.errors import JobError
from standalone import nats
from standalone.home import default_home, holder
from standalone.settings import StandaloneSettings

Check = tuple[str, bool | None, str]
"""Name of the check; True if it passed, False if it failed, None for information; the finding."""

_GIB = 1 << 30


def checks() -> Iterator[Check]:
    """Entry point of the group `finetuneflow.checks`."""
    yield _broker()
    home = default_home()
    held_by = holder(home)
    yield "home", None, f"{home}, " + (f"held by {held_by}" if held_by else "not in use")
    yield from _configured_models(home)
    yield from _confinement(home)
    yield _check_free_space("disk", shutil.disk_usage(_existing(home)).free, 2)
    yield _check_free_space("memory", psutil.virtual_memory().available, 4)


def _broker() -> Check:
    try:
        program = nats.binary()
        told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (nats.NatsServerMissing, OSError, subprocess.SubprocessError) as error:
        return "nats-server", False, str(error)
    return "nats-server", True, f"{told.strip().removeprefix('nats-server: ')}, {program}"


def _confinement(home: Path) -> Iterator[Check]:
    name = "children"
    lacks = confinement.missing()
    for lack in lacks:
        yield name, None, lack
    if not lacks:
        yield name, True, "they read their inputs, write their own folder, and use no network"
    if program := confinement.program_folder_around(home):
        yield name, False, f"{home} is below {program}, which every child can read: set FTF_HOME to another folder"


def _configured_models(home: Path) -> Iterator[Check]:
    name = "own models"
    try:
        models = StandaloneSettings().models
    except (ValidationError, SettingsError) as error:
        yield name, False, f"FTF_MODELS is not valid JSON: {error}"
        return
    if not models:
        yield name, None, "none; set FTF_MODELS to add folders to the catalogue"
    catalogue = Catalogue(home, models)
    for alias, folder in sorted(models.items()):
        try:
            shapes = catalogue.describe(alias).shapes
        except (JobError, OSError, ValueError) as error:
            yield name, False, f"{alias}: {_missing_files(folder) or error}"
        else:
            lacks = _missing_files(folder)
            yield name, not lacks, f"{alias}: {lacks or f'{folder}, {len(shapes):,} tensors'}"


def _missing_files(folder: Path) -> str:
    if not folder.is_dir():
        return f"no such folder: {folder}"
    lacks = [name for name in ("config.json", "tokenizer.json", "*.safetensors") if not any(folder.glob(name))]
    return f"{folder} has no {' and no '.join(lacks)}" if lacks else ""


def _check_free_space(name: str, free_bytes: int, least_gib: int) -> Check:
    # A low value is no fault of the installation: this machine may be a client only.
    enough = True if free_bytes >= least_gib * _GIB else None
    return name, enough, f"{free_bytes / _GIB:.1f} GiB free; training the smallest model needs {least_gib} GiB"


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
