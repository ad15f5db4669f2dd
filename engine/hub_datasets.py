"""Finds and downloads files of rows from the hub. Code of a dataset is never run."""

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from engine.config.hub_reference import HubReference
from engine.data.endings import ENDINGS, ending_of
from engine.download_progress import report_progress
from engine.errors import JobError, Violation
from engine.file_hash import sha256_of
from engine.hub import TokenOf, hub_error

_ABOUT: Final = ("dataset_info.json", "dataset_infos.json", "license.txt", "readme.txt", "requirements.txt")
"""Files with the ending of a data file that describe the dataset; used only if named explicitly."""
_SHOWN = 10
"""Maximum number of files that an error lists."""


@dataclass(frozen=True)
class HubFile:
    """One file of a dataset, at one commit."""

    asked: str
    """The reference in the spec."""
    reference: str
    """The reference with commit and path, whose content never changes."""
    size_bytes: int
    field: str
    """Path in the spec of the first reference to it."""
    sha256: str = ""
    """As the hub states it; empty for a small file, for which it does not."""

    @property
    def filename(self) -> str:
        """The name under which it is downloaded."""
        return Path(HubReference.parse(self.reference).path).name


@dataclass(frozen=True)
class HubDataset:
    """A downloaded file of a dataset."""

    file: HubFile
    path: Path
    sha256: str


@dataclass(frozen=True)
class _Listed:
    """What the hub says of a file."""

    size_bytes: int
    sha256: str


class HubDatasets:
    """A client of the hub. Its methods block.

    A name is resolved to a commit once, so that all files of a dataset are of the same commit.
    """

    def __init__(self, token: TokenOf, max_bytes: int) -> None:
        self._token, self._max_bytes = token, max_bytes
        self._seen: dict[tuple[str, str], tuple[str, Mapping[str, _Listed]]] = {}

    def find(self, asked: str, field: str) -> HubFile:
        """Resolves a reference to one file at one commit.

        Raises JobError: INVALID_DATASET, DATASET_NOT_FOUND, DATASET_GATED, NO_READABLE_FILES, SEVERAL_FILES,
        DATASET_TOO_LARGE, HUB_TOKEN_REFUSED, and what the token's function raises. SystemFailure: HUB_UNREACHABLE.
        """
        try:
            named = HubReference.parse(asked)
        except ValueError as error:
            message = f"{asked[:120]!r} is not a valid dataset reference: {error}."
            raise _error("INVALID_DATASET", message, "Correct the reference, or upload the file.", field) from error
        commit, listed = self._files(named, field)
        path = _select_file(named, listed, field)
        found = listed[path]
        if found.size_bytes > self._max_bytes:
            raise _error(
                "DATASET_TOO_LARGE",
                f"{path} of {named.id} has {found.size_bytes:,} bytes; the limit is {self._max_bytes:,} bytes.",
                "Use a smaller file, or ask the operator to raise FTF_MAX_DATASET_BYTES.",
                field,
            )
        return HubFile(asked, str(named.pinned(commit, path)), found.size_bytes, field, found.sha256)

    def fetch(
        self,
        file: HubFile,
        folder: Path,
        on_progress: Callable[[int], None] | None = None,
        go_on: Callable[[], None] = lambda: None,
    ) -> HubDataset:
        """Downloads a file into `folder`, which must not exist, under its own name; continues an earlier download that
        failed. `go_on` is called for each part that is received; an exception that it raises ends the download.

        Raises the errors of `find`.
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils.tqdm import tqdm

        class Parts(tqdm):
            def update(self, n: float | None = 1) -> bool | None:
                go_on()
                shown: bool | None = super().update(n)
                return shown

        named = HubReference.parse(file.reference)
        partial = folder.with_name(f".{folder.name}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        with report_progress(folder, on_progress):
            try:
                got = hf_hub_download(
                    named.id,
                    named.path,
                    repo_type="dataset",
                    revision=named.revision,
                    token=self._token(named.id),
                    local_dir=partial,
                    tqdm_class=Parts,
                )
            except Exception as error:
                raise _hub_error(error, named, file.field) from error
            folder.mkdir()
            path = Path(got).rename(folder / file.filename)
            shutil.rmtree(partial)
        return HubDataset(file, path, sha256_of(path))

    def _files(self, named: HubReference, field: str) -> tuple[str, Mapping[str, _Listed]]:
        """Returns the commit, and what the hub says of every file, by its path."""
        from huggingface_hub import HfApi

        key = (named.id, named.revision)
        if key not in self._seen:
            try:
                info = HfApi(token=self._token(named.id)).dataset_info(
                    named.id, revision=named.revision or None, files_metadata=True, timeout=30
                )
            except Exception as error:
                raise _hub_error(error, named, field) from error
            commit = str(info.sha)
            # Commit and path come from the hub and become parts of paths.
            self._seen[key] = (
                commit,
                {
                    file.rfilename: _Listed(file.size or 0, file.lfs.sha256 if file.lfs else "")
                    for file in info.siblings or []
                    if _is_path(named.pinned(commit, file.rfilename))
                },
            )
        return self._seen[key]


def _is_path(reference: HubReference) -> bool:
    try:
        return HubReference.parse(str(reference)) == reference
    except ValueError:
        return False


def _select_file(named: HubReference, sizes: Iterable[str], field: str) -> str:
    readable = sorted(path for path in sizes if ending_of(Path(path).name))
    found = [path for path in readable if Path(path).name.lower() not in _ABOUT and not path.startswith(".")]
    listed = ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
    if named.path in readable:
        return named.path
    if named.path and named.path not in sizes:
        message = f"{named.id} has no file {named.path!r} at this revision."
        raise _error("DATASET_NOT_FOUND", message, f"Data files: {listed}." if found else "", field)
    if named.path or not found:
        message = f"{named.path} of {named.id} is not a data file." if named.path else f"{named.id} has no data files."
        endings = ", ".join(f".{ending}" for ending in ENDINGS)
        advice = f"Data files end in {endings}; scripts are never run. Try the Parquet files at @refs/convert/parquet."
        raise _error("NO_READABLE_FILES", message, f"Data files: {listed}." if found else advice, field)
    if len(found) > 1:
        message = f"{named.id} has {len(found)} data files: {listed}."
        advice = (
            f"Name one file, such as {named.pinned(named.revision, found[0])}, or each file as a dataset of its own."
        )
        raise _error("SEVERAL_FILES", message, advice, field)
    return found[0]


def _hub_error(error: Exception, named: HubReference, field: str) -> Exception:
    return hub_error(error, "dataset", named.id, field, "upload the file instead")


def _error(reason: str, message: str, advice: str, field: str) -> JobError:
    return JobError(reason, message, advice, [Violation(field, message)])
