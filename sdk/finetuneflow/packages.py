"""Downloads of whole packages, and progress that names the file."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path

from finetuneflow.artifacts import AsyncArtifacts
from finetuneflow.files import safe_relative_path

# Called with (file name, bytes done, bytes in all).
FileProgress = Callable[[str, int, int], None]

_EXPORT_KINDS = ("export_package", "export_file")


async def download_package(
    artifacts: AsyncArtifacts,
    work_id: str,
    folder: Path,
    progress: FileProgress | None,
    only: Container[str] | None = None,
) -> list[Path]:
    """Downloads every file of the export of a job, or of an export asked for alone. Returns their paths; empty if there
    is no export. `only` names the folders of the package whose files are wanted, "" the top folder without the zip."""
    files = [a async for a in artifacts.list(work_id) if a.kind in _EXPORT_KINDS and not a.is_folder]
    paths = []
    for artifact in files:
        name = artifact.name.removeprefix("export/")
        if only is not None and (artifact.kind == "export_package" or name.rpartition("/")[0] not in only):
            continue
        target = folder / safe_relative_path(name)
        # A newer attempt's file of the same name comes later in the list and replaces the older one.
        on_progress = None if progress is None else named_progress(progress, target.name)
        path = await artifacts.download(artifact, target, progress=on_progress)
        if path not in paths:
            paths.append(path)
    return paths


def named_progress(progress: FileProgress, name: str) -> Callable[[int, int], None]:
    """Returns a callback for the transfer of one file."""
    return lambda done, total: progress(name, done, total)
