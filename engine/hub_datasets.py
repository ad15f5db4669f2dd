"""Finds and downloads files of rows from the hub. Code of a dataset is never run."""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
MAX_FILES: Final = 100
"""Maximum number of files for which one reference stands: each is named in events of the job."""
_TRAINING = re.compile(r"(?:^|[-._ /])(?:train|training)(?:[-._ /0-9]|$)", re.IGNORECASE)
_NOT_TRAINING = re.compile(
    r"(?:^|[-._ /])(?:test|testing|validation|valid|val|dev|eval|evaluation)(?:[-._ /0-9]|$)", re.IGNORECASE
)


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
    num_left_out: int = 0
    """Number of the dataset's files that its reference does not stand for, because they are of other splits."""

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
class _Repository:
    """Listing of a dataset at one commit."""

    commit: str
    files: Mapping[str, tuple[int, str]]
    """Path → bytes and, where the hub states it, SHA-256."""
    is_divided: bool
    """True if the dataset's card declares subsets or splits."""


class HubDatasets:
    """A client of the hub. Its methods block.

    A name is resolved to a commit once, so that all files of a dataset are of the same commit.
    """

    def __init__(self, token: TokenOf, max_bytes: int) -> None:
        self._token, self._max_bytes = token, max_bytes
        self._seen: dict[tuple[str, str], _Repository] = {}

    def find(self, asked: str, field: str) -> HubFile:
        """Resolves a reference to one file at one commit. Raises what `find_all` raises."""
        named, found = self._parsed(asked, field)
        paths = _named_files(named, found, field)
        if len(paths) > 1:
            message = f"{named.id} has {len(paths)} data files: {_listed(paths)}."
            first = named.pinned(named.revision, paths[0])
            advice = f"Name one file, such as {first}, or each file as a dataset of its own."
            raise _error("SEVERAL_FILES", message, advice, field)
        return self._pinned(asked, named, found, paths[0], field)

    def find_all(self, asked: str, field: str, *, training: bool) -> list[HubFile]:
        """Resolves a reference to its files at one commit, sorted by path: the file or the files of the folder that it
        names; of a whole dataset those of its split `train`, if `training`, or else the only file.

        Raises JobError: INVALID_DATASET, DATASET_NOT_FOUND, DATASET_GATED, NO_READABLE_FILES, SEVERAL_FILES (more than
        MAX_FILES, or files of which not all are rows to train on), DATASET_TOO_LARGE, HUB_TOKEN_REFUSED, and what the
        token's function raises. SystemFailure: HUB_UNREACHABLE.
        """
        named, found = self._parsed(asked, field)
        every = paths = _named_files(named, found, field)
        if len(paths) > 1 and not named.path:
            if not training:
                return [self.find(asked, field)]
            paths = _training_files(named, found, paths, field)
        if len(paths) > MAX_FILES:
            message = f"{asked} has {len(paths):,} data files; the limit is {MAX_FILES}."
            advice = "Name a folder or files of it, such as " + str(named.pinned(named.revision, paths[0])) + "."
            raise _error("SEVERAL_FILES", message, advice, field)
        files = [self._pinned(asked, named, found, path, field) for path in paths]
        return [replace(file, num_left_out=len(every) - len(paths)) for file in files]

    def _parsed(self, asked: str, field: str) -> "tuple[HubReference, _Repository]":
        try:
            named = HubReference.parse(asked)
        except ValueError as error:
            message = f"{asked[:120]!r} is not a valid dataset reference: {error}."
            raise _error("INVALID_DATASET", message, "Correct the reference, or upload the file.", field) from error
        return named, self._repository(named, field)

    def _pinned(self, asked: str, named: HubReference, found: "_Repository", path: str, field: str) -> HubFile:
        size, sha256 = found.files[path]
        if size > self._max_bytes:
            raise _error(
                "DATASET_TOO_LARGE",
                f"{path} of {named.id} has {size:,} bytes; the limit is {self._max_bytes:,} bytes.",
                "Use a smaller file, or ask the operator to raise FTF_MAX_DATASET_BYTES.",
                field,
            )
        return HubFile(asked, str(named.pinned(found.commit, path)), size, field, sha256)

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

    def _repository(self, named: HubReference, field: str) -> _Repository:
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
            files = {
                file.rfilename: (file.size or 0, file.lfs.sha256 if file.lfs else "")
                for file in info.siblings or []
                if _is_path(named.pinned(commit, file.rfilename))
            }
            self._seen[key] = _Repository(commit, files, bool(info.card_data and info.card_data.get("configs")))
        return self._seen[key]


def _is_path(reference: HubReference) -> bool:
    try:
        return HubReference.parse(str(reference)) == reference
    except ValueError:
        return False


def _named_files(named: HubReference, found: _Repository, field: str) -> list[str]:
    """Returns the paths of the data files that a reference names, sorted: a file, those of a folder or all; at least
    one."""
    readable = sorted(path for path in found.files if ending_of(Path(path).name))
    usual = [path for path in readable if Path(path).name.lower() not in _ABOUT and not path.startswith(".")]
    if named.path in readable:
        return [named.path]
    chosen = [path for path in usual if path.startswith(f"{named.path}/")] if named.path else usual
    if chosen:
        return chosen
    if named.path and not any(path == named.path or path.startswith(f"{named.path}/") for path in found.files):
        message = f"{named.id} has no file or folder {named.path!r} at this revision."
        raise _error("DATASET_NOT_FOUND", message, f"Data files: {_listed(usual)}." if usual else "", field)
    message = f"{named.path} of {named.id} is no data file." if named.path else f"{named.id} has no data files."
    endings = ", ".join(f".{ending}" for ending in ENDINGS)
    advice = f"Data files end in {endings}; scripts are never run. Try the Parquet files at @refs/convert/parquet."
    raise _error("NO_READABLE_FILES", message, f"Data files: {_listed(usual)}." if usual else advice, field)


def _training_files(named: HubReference, found: _Repository, paths: list[str], field: str) -> list[str]:
    """Returns those of several files that are the split `train` by the names that the hub itself goes by: a file whose
    path says so; all, if none says of which split it is. Raises JobError("SEVERAL_FILES") if that is a guess."""
    training = [path for path in paths if _TRAINING.search(path)]
    chosen = training or paths
    kinds = sorted({str(ending_of(Path(path).name)) for path in chosen})
    problem = ""
    if found.is_divided:
        problem = "its card declares subsets or splits"
    elif not training and any(_NOT_TRAINING.search(path) for path in paths):
        problem = "some are not to train on, by their names, and none is named `train`"
    elif len(kinds) > 1:
        problem = f"of several formats ({', '.join(kinds)}), which may have the same rows"
    if not problem:
        return chosen
    message = f"{named.id} has {len(paths)} data files: {_listed(paths)}; {problem}."
    first = named.pinned(named.revision, chosen[0])
    folder = f", a folder, such as {first.folder}" if first.folder else ""
    raise _error("SEVERAL_FILES", message, f"Name one file, such as {first}{folder}, or each file as a dataset.", field)


def _listed(paths: list[str]) -> str:
    return ", ".join(paths[:_SHOWN]) + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")


def _hub_error(error: Exception, named: HubReference, field: str) -> Exception:
    return hub_error(error, "dataset", named.id, field, "upload the file instead")


def _error(reason: str, message: str, advice: str, field: str) -> JobError:
    return JobError(reason, message, advice, [Violation(field, message)])
