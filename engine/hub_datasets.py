"""Files of rows out of a hub: which one is meant, which commit, and its bytes. Nothing of a dataset is ever run."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.config.hub_reference import HubReference
from engine.data.endings import ENDINGS, ending_of
from engine.errors import JobError, Violation
from engine.file_hash import sha256_of
from engine.growth import growth_told
from engine.hub import hub_error

_ABOUT: Final = ("dataset_info.json", "dataset_infos.json", "license.txt", "readme.txt", "requirements.txt")
"""Files that end as rows do and say something about the dataset instead. Whoever names one gets it."""
_SHOWN = 10
"""Files that a refusal lists."""


@dataclass(frozen=True)
class HubFile:
    """One file of a dataset, at one commit."""

    asked: str
    """As the spec named it."""
    reference: str
    """The same with commit and path: it names these bytes for ever."""
    size_bytes: int
    field: str
    """Path in the spec, of its first mention."""


@dataclass(frozen=True)
class HubDataset:
    """A file of a dataset that is here."""

    file: HubFile
    path: Path
    sha256: str


class HubDatasets:
    """Reads one hub with one token; what a name means is found out once, so that two files of one dataset are of one
    commit. Its methods block."""

    def __init__(self, token: str, max_bytes: int) -> None:
        self._token, self._max_bytes = token or None, max_bytes
        self._seen: dict[tuple[str, str], tuple[str, Mapping[str, int]]] = {}

    def find(self, asked: str, field: str) -> HubFile:
        """Raises JobError: INVALID_DATASET, DATASET_NOT_FOUND, DATASET_GATED, NO_READABLE_FILES, SEVERAL_FILES,
        DATASET_TOO_LARGE. SystemFailure: HUB_UNREACHABLE."""
        try:
            named = HubReference.parse(asked)
        except ValueError as error:
            message = f"{asked[:120]!r} names no dataset: {error}."
            raise _error("INVALID_DATASET", message, "Name it like that, or upload the file.", field) from error
        commit, sizes = self._files(named, field)
        path = _the_file(named, sizes, field)
        size = sizes[path]
        if size > self._max_bytes:
            raise _error(
                "DATASET_TOO_LARGE",
                f"{path} of {named.id} has {size:,} bytes; {self._max_bytes:,} are the limit.",
                "Name a smaller file of it, or have the operator raise FTF_MAX_DATASET_BYTES.",
                field,
            )
        return HubFile(asked, str(named.pinned(commit, path)), size, field)

    def fetch(self, file: HubFile, folder: Path, on_progress: Callable[[int], None] | None = None) -> HubDataset:
        """Downloads it into `folder`, which must not be there yet, under its own name. Raises what `find` does."""
        from huggingface_hub import hf_hub_download

        named = HubReference.parse(file.reference)
        partial = folder.with_name(f".{folder.name}.partial")
        partial.mkdir(parents=True)
        with growth_told(folder, on_progress):
            try:
                got = hf_hub_download(
                    named.id,
                    named.path,
                    repo_type="dataset",
                    revision=named.revision,
                    token=self._token,
                    local_dir=partial,
                )
            except Exception as error:
                raise _hub_error(error, named, file.field) from error
            folder.mkdir()
            path = Path(got).rename(folder / Path(named.path).name)
            shutil.rmtree(partial)
        return HubDataset(file, path, sha256_of(path))

    def _files(self, named: HubReference, field: str) -> tuple[str, Mapping[str, int]]:
        """Commit, and path → bytes of every file."""
        from huggingface_hub import HfApi

        key = (named.id, named.revision)
        if key not in self._seen:
            try:
                info = HfApi(token=self._token).dataset_info(
                    named.id, revision=named.revision or None, files_metadata=True, timeout=30
                )
            except Exception as error:
                raise _hub_error(error, named, field) from error
            self._seen[key] = (str(info.sha), {file.rfilename: file.size or 0 for file in info.siblings or []})
        return self._seen[key]


def _the_file(named: HubReference, sizes: Mapping[str, int], field: str) -> str:
    readable = sorted(path for path in sizes if ending_of(Path(path).name))
    told = [path for path in readable if Path(path).name.lower() not in _ABOUT and not path.startswith(".")]
    listed = ", ".join(told[:_SHOWN]) + (f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else "")
    if named.path in readable:
        return named.path
    if named.path and named.path not in sizes:
        message = f"{named.id} has no file {named.path!r} at this revision."
        raise _error("DATASET_NOT_FOUND", message, f"Files with rows are: {listed}." if told else "", field)
    if named.path or not told:
        found = f"{named.path} of {named.id}" if named.path else f"No file of {named.id}"
        message = f"{found} {'does not end' if named.path else 'ends'} as a file of rows does."
        endings = ", ".join(f".{ending}" for ending in ENDINGS)
        advice = (
            f"Read are {endings}; scripts never. Many datasets have their rows as Parquet at @refs/convert/parquet."
        )
        raise _error("NO_READABLE_FILES", message, f"Files with rows are: {listed}." if told else advice, field)
    if len(told) > 1:
        message = f"{named.id} has {len(told)} files with rows: {listed}."
        advice = f"Name one, such as {named.pinned(named.revision, told[0])}; several are several datasets of the job."
        raise _error("SEVERAL_FILES", message, advice, field)
    return told[0]


def _hub_error(error: Exception, named: HubReference, field: str) -> Exception:
    return hub_error(error, "dataset", named.id, field, "upload the file instead")


def _error(reason: str, message: str, advice: str, field: str) -> JobError:
    return JobError(reason, message, advice, [Violation(field, message)])
