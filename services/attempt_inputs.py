"""Inputs that a supervisor provides to its child: base model, files of the artifact store, environment."""

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Container, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from chassis.child.child_process import ChildCommand
from chassis.preparation import GivenUp, current, hold, say
from chassis.store.artifact_store import MANIFEST, ArtifactCorrupt, ArtifactMissing, ArtifactStore
from engine.catalogue import Catalogue
from engine.config.job import JobConfig
from engine.config.spec_proto import resolved_config
from engine.data.work_limits import WorkLimits
from engine.errors import JobError, SystemFailure, Violation
from engine.hub_cache import ModelUses
from engine.model_names import model_reference
from engine.random_reference import RandomReference
from finetuneflow.v1.fine_tuning_job_pb2 import Checkpoint
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from finetuneflow.v1.stage_result_pb2 import BaseModelIdentity
from finetuneflow.v1.work_pb2 import Assignment
from services.child_input import ChildInput, ModelFiles, WholeCheckpoint
from services.hub_access import HubAccess
from services.path_fields import dataset_violations, described, path_violations, tenant_violations
from services.provided_files import ProvidedFile
from services.settings import ServiceSettings

_log = logging.getLogger(__name__)

_NO_LIMITS: Final = WorkLimits()
RETRY_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Delays between attempts to read from the store: a short outage must not cost one of the job's attempts."""


class VersionMismatch(SystemFailure):
    """The gateway that resolved the job's configuration runs another version than this process."""


def job_configuration(spec: FineTuningJobSpec) -> JobConfig:
    """Returns the configuration of an assignment's merged or resolved spec. Raises VersionMismatch if its fields or
    ranges are unknown here."""
    try:
        return resolved_config(spec)
    except ValidationError as error:
        fields = ", ".join(".".join(["spec", *map(str, detail["loc"])]) for detail in error.errors())
        raise VersionMismatch(
            "VERSION_MISMATCH",
            f"Gateway and worker have different versions: the worker does not accept {fields}.",
            "Ask the operator to run gateways and workers of the same version.",
        ) from error


def catalogue(settings: ServiceSettings) -> Catalogue:
    """Returns the catalogue of base models of this installation."""
    return Catalogue(
        settings.home,
        settings.models,
        settings.max_model_bytes,
        max_cache_bytes=settings.hub_cache_bytes or None,
        on_evicted=_count_evicted,
        shared=settings.hub_cache_shared,
    )


def _count_evicted(num_bytes: int) -> None:
    # Here, because children import this module and serve no metrics.
    from chassis.server.gauges import EVICTED_MODEL_BYTES

    EVICTED_MODEL_BYTES.inc(num_bytes)


async def base_model(
    catalogue: Catalogue, assignment: Assignment, hub: HubAccess, store: ArtifactStore, workdir: Path
) -> ModelFiles:
    """Returns the base model with the weights that preflight checked, downloaded or made if necessary.

    Raises JobError("BASE_MODEL_CHANGED") if the weights under that name on this node are others.
    """
    return await checked_model(catalogue, assignment, assignment.preflight.base_model, hub, store, workdir)


async def checked_model(
    catalogue: Catalogue,
    assignment: Assignment,
    identity: BaseModelIdentity,
    hub: HubAccess,
    store: ArtifactStore,
    workdir: Path,
) -> ModelFiles:
    """Returns a base model of the tenant with the weights of that identity. Raises as `base_model` does."""
    tokenizer = await corpus_tokenizer(assignment, identity.id, identity.tokenizer_path, store, workdir)
    name = model_reference(identity.id, identity.revision)
    found = await fetched_model(catalogue, name, hub, tokenizer=tokenizer)
    if found.weights_sha256 != identity.weights_sha256:
        message = f"The weights of {identity.id} on this node differ from those that preflight checked."
        advice = "Create the job again. If it happens again, ask the operator to put the same files on every node."
        raise _changed(message, advice)
    return found.model_copy(update={"id": identity.id, "revision": identity.revision})


def check_base_of_start(assignment: Assignment, model: ModelFiles) -> None:
    """Raises JobError("BASE_MODEL_CHANGED") if the adapter that the job starts from was trained on other weights."""
    start = assignment.start
    if start.HasField("checkpoint") and start.base_weights_sha256 != model.weights_sha256:
        name = assignment.merged_spec.start_from
        message = f"The weights of {model.id} on this node differ from those that {name} was trained on."
        raise _changed(message, "Ask the operator to put back the files of that time, or train on the base model.")


def _changed(message: str, advice: str) -> JobError:
    return JobError("BASE_MODEL_CHANGED", message, advice, [Violation("spec.base_model", message)])


async def fetched_model(
    catalogue: Catalogue,
    reference: str,
    hub: HubAccess,
    *,
    tokenizer: Path | None = None,
    tokenizer_only: bool = False,
) -> ModelFiles:
    """Downloads the base model that the name refers to now. It stays on this machine until the attempt's child has
    ended. Arguments and errors are those of `Catalogue.fetch`."""
    say("fetching_model", reference)
    fetch, uses = catalogue.fetch, hold(ModelUses())
    found = await asyncio.to_thread(
        fetch, reference, hub.token, tokenizer_only, download_progress(), uses=uses, tokenizer=tokenizer
    )
    return ModelFiles(**asdict(found))


async def corpus_tokenizer(
    assignment: Assignment, base_model: str, path: str, store: ArtifactStore, workdir: Path
) -> Path | None:
    """Downloads the tokenizer of a base model that was trained on the rows of a job; `path` is that of its
    tokenizer.json, relative to the tenant's folder. Returns None for a model with another tokenizer."""
    named = RandomReference.parse(base_model)
    if named is None or not named.corpus_sha256 or not path:
        return None
    file = workdir / "tokenizers" / f"{named.corpus_sha256}.json"
    await _fetch(store.get_file, _stored(assignment, path), file, named.corpus_sha256)
    return file


def download_progress() -> Callable[[int], None]:
    """Returns a callback that reports received bytes, from any thread, to the current preparation."""
    preparation = current()

    def report_bytes(num_bytes: int) -> None:
        if preparation:
            # A model's download continues although this job no longer waits for it: the next job uses it.
            with contextlib.suppress(GivenUp):
                preparation.progressed(num_bytes)

    return report_bytes


async def dataset_files(
    assignment: Assignment, store: ArtifactStore, workdir: Path, only: Container[str] | None = None
) -> dict[str, Path]:
    """Downloads datasets: all, or those whose ids are in `only`. Returns dataset id → file; the file name's extension
    tells the child the format."""
    files: dict[str, Path] = {}
    for index, dataset in enumerate(assignment.datasets):
        if only is not None and dataset.id not in only:
            continue
        _refuse(dataset_violations(dataset, f"datasets[{index}]"))
        say("fetching_data", dataset.filename, dataset.size_bytes)
        file = files[dataset.id] = workdir / "sources" / dataset.id / dataset.filename
        await _fetch(store.get_file, _stored(assignment, dataset.path), file, dataset.sha256)
    return files


def provided_datasets(
    assignment: Assignment,
    store: ArtifactStore,
    workdir: Path,
    only: Container[str],
    retry_seconds: Sequence[float] = RETRY_SECONDS,
) -> dict[str, ProvidedFile]:
    """Returns the uploaded datasets whose ids are in `only`, for a download while the child runs: dataset id → file, at
    the paths of `dataset_files`."""
    files = {}
    for index, dataset in enumerate(assignment.datasets):
        if dataset.id in only:
            _refuse(dataset_violations(dataset, f"datasets[{index}]"))
            file, path = workdir / "sources" / dataset.id / dataset.filename, _stored(assignment, dataset.path)
            fetch = partial(_fetch, store.get_file, path, file, dataset.sha256, retry_seconds)
            files[dataset.id] = ProvidedFile(file, dataset.size_bytes, fetch)
    return files


async def reusable_shards(assignment: Assignment, store: ArtifactStore, parent: Path, key: str) -> Path | None:
    """Downloads token shards with that content key, which another job of the tenant has made, into `parent`.

    Returns None if there are none, or none that verifies: then they are made again.
    """
    folder = parent / "made-shards"
    for made in assignment.shards:
        if not key or made.content_key != key:
            continue
        say("fetching_data", "token shards of an earlier job")
        path = _stored(assignment, made.path)
        try:
            await asyncio.to_thread(store.get_folder, path, folder, made.manifest_sha256)
        except (ArtifactMissing, ArtifactCorrupt, OSError) as error:
            _log.warning("token shards in %s cannot be used: %s", made.path, error)
        else:
            return folder
    return None


async def token_shards(
    assignment: Assignment, store: ArtifactStore, workdir: Path, retry_seconds: Sequence[float] = RETRY_SECONDS
) -> Path:
    """Downloads the token shards of preflight: train/, eval/ and the files beside them."""
    found, folder = assignment.preflight, workdir / "data"
    say("fetching_data", "token shards")
    path = _stored(assignment, found.shards_path)
    await _fetch(store.get_folder, path, folder, found.shards_manifest_sha256, retry_seconds)
    return folder


async def held_out_shard(assignment: Assignment, store: ArtifactStore, workdir: Path) -> Path | None:
    """Downloads the token shard of the held-out rows; None if preflight held out none."""
    found, folder = assignment.preflight, workdir / "held-out"
    if not found.evaluation_data.num_examples:
        return None
    say("fetching_data", "held-out rows")
    path = _stored(assignment, found.shards_path)
    get = partial(store.get_folder, below="eval")
    await _fetch(get, path, folder, found.shards_manifest_sha256)
    return folder / "eval"


async def held_out_texts(assignment: Assignment, store: ArtifactStore, workdir: Path) -> Path | None:
    """Downloads the texts of the held-out rows, in the order of their shard; None if preflight held out none."""
    found, file = assignment.preflight, workdir / "eval_rows.jsonl"
    if not found.evaluation_data.num_examples:
        return None

    def get(path: str, local: Path, manifest_sha256: str) -> None:
        store.get_file_of_folder(path, "eval_rows.jsonl", local, manifest_sha256)

    await _fetch(get, _stored(assignment, found.shards_path), file, found.shards_manifest_sha256)
    return file


async def best_checkpoint(assignment: Assignment, store: ArtifactStore, workdir: Path) -> WholeCheckpoint:
    """Downloads the best checkpoint of the training."""
    chosen = assignment.training
    best = Checkpoint(
        step=chosen.best_step,
        path=chosen.best_checkpoint_path,
        manifest_sha256=chosen.best_checkpoint_manifest_sha256,
    )
    return await whole_checkpoint(assignment, best, store, workdir / "checkpoint")


async def whole_checkpoint(
    assignment: Assignment, chosen: Checkpoint, store: ArtifactStore, folder: Path
) -> WholeCheckpoint:
    """Downloads an accepted checkpoint into `folder`."""
    path = _stored(assignment, chosen.path)
    say("fetching_checkpoint", f"step {chosen.step}")
    await _fetch(store.get_folder, path, folder, chosen.manifest_sha256)
    return WholeCheckpoint(path=folder, manifest_sha256=chosen.manifest_sha256)


async def evaluation_rows(assignment: Assignment, store: ArtifactStore, workdir: Path) -> Path | None:
    """Downloads the rows of the evaluation; None if it has none."""
    stored = assignment.evaluation
    if not stored.rows_path:
        return None
    file = workdir / "evaluation_rows.jsonl"
    say("fetching_data", "rows of the evaluation", stored.rows_size_bytes)
    await _fetch(store.get_file, _stored(assignment, stored.rows_path), file, stored.rows_sha256)
    return file


async def measurement_files(assignment: Assignment, store: ArtifactStore, workdir: Path) -> list[Path]:
    """Downloads the measurements of earlier evaluations. Leaves out those that cannot be read: they are made again."""
    found = []
    if assignment.measurements:
        say("fetching_data", f"measurements of earlier evaluations, {len(assignment.measurements)} files")
    for number, stored in enumerate(assignment.measurements):
        file = workdir / "measurements" / f"{number:04}.jsonl"
        path = _stored(assignment, stored.path)
        try:
            await asyncio.to_thread(store.get_file, path, file, stored.sha256)
        except (ArtifactMissing, ArtifactCorrupt, OSError) as error:
            _log.warning("measurements in %s cannot be used: %s", stored.path, error)
        else:
            found.append(file)
    return found


async def start_checkpoint(
    assignment: Assignment, store: ArtifactStore, workdir: Path, retry_seconds: Sequence[float] = RETRY_SECONDS
) -> WholeCheckpoint:
    """Downloads the checkpoint of another job that the training starts from, or the uploaded adapter."""
    if assignment.start.HasField("dataset"):
        dataset, file = assignment.start.dataset, workdir / "start.safetensors"
        say("fetching_checkpoint", dataset.filename, dataset.size_bytes)
        await _fetch(store.get_file, _stored(assignment, dataset.path), file, dataset.sha256, retry_seconds)
        return WholeCheckpoint(path=file, manifest_sha256=dataset.sha256)
    chosen, folder = assignment.start.checkpoint, workdir / "start"
    path = _stored(assignment, chosen.path)
    say("fetching_checkpoint", f"ft:{chosen.job_id}@{chosen.step}", chosen.size_bytes)
    await _fetch(store.get_folder, path, folder, chosen.manifest_sha256, retry_seconds)
    return WholeCheckpoint(path=folder, manifest_sha256=chosen.manifest_sha256)


async def newest_checkpoint(
    assignment: Assignment, store: ArtifactStore, workdir: Path, retry_seconds: Sequence[float] = RETRY_SECONDS
) -> tuple[WholeCheckpoint | None, dict[int, str]]:
    """Downloads the newest accepted checkpoint that verifies. Also returns the problems of newer ones (by step).

    Returns None if the training must start from the beginning: no checkpoint was accepted, or all are damaged. A store
    that is unavailable looks like an empty one: raises SystemFailure("CHECKPOINTS_MISSING") then, because a start from
    the beginning would discard everything that was trained.
    """
    unusable: dict[int, str] = {}
    unread = False
    for checkpoint in assignment.checkpoints:
        folder = workdir / "resume" / f"step-{checkpoint.step}"
        path = _stored(assignment, checkpoint.path)
        say("fetching_checkpoint", f"step {checkpoint.step}", checkpoint.size_bytes)
        try:
            await _fetch(
                store.get_folder, path, folder, checkpoint.manifest_sha256, retry_seconds, missing_is_final=True
            )
        except (ArtifactMissing, ArtifactCorrupt, OSError) as error:
            unread |= isinstance(error, OSError)
            unusable[checkpoint.step] = f"{type(error).__name__}: {error}"
            _log.warning("checkpoint of step %d cannot be used, trying an older one: %s", checkpoint.step, error)
        else:
            return WholeCheckpoint(path=folder, manifest_sha256=checkpoint.manifest_sha256), unusable
    manifests = [f"{_stored(assignment, checkpoint.path)}/{MANIFEST}" for checkpoint in assignment.checkpoints]
    if manifests and (unread or not await asyncio.to_thread(lambda: any(map(store.exists, manifests)))):
        steps = ", ".join(map(str, unusable))
        raise SystemFailure(
            "CHECKPOINTS_MISSING",
            f"None of the job's checkpoints (steps {steps}) can be read from the artifact store.",
            "Ask the operator to check the artifact store. If they are lost, create the job again.",
        )
    return None, unusable


def _stored(assignment: Assignment, path: str) -> str:
    """Returns a path of the assignment in the artifact store. Raises SystemFailure("BAD_ASSIGNMENT") if it is none."""
    _refuse(tenant_violations(assignment.tenant, "tenant") or path_violations(path, "path"))
    return f"{assignment.tenant}/{path}"


def _refuse(violations: Sequence[Violation]) -> None:
    if violations:
        message = f"The gateway sent an assignment that is not valid. {described(violations)}"
        raise SystemFailure("BAD_ASSIGNMENT", message, "Ask the operator to check the gateways.")


def child_command(
    settings: ServiceSettings,
    child_input: ChildInput,
    workdir: Path,
    reads: Sequence[Path | None],
    *,
    gpus: int | None = None,
    limits: WorkLimits = _NO_LIMITS,
) -> ChildCommand:
    """Writes the child's input and returns how to start the child. With 0 GPUs it sees none.

    `reads` names its inputs outside of `workdir`; None stands for an input that there is not. `limits` are those that
    the child sets itself.
    """
    file = workdir / "input.json"
    file.write_text(child_input.model_dump_json(indent=1), "utf-8")
    return ChildCommand(
        argv=[sys.executable, "-m", f"services.{settings.service}.worker", str(file)],
        env=child_environment(settings),
        late_env=child_devices(gpus),
        out_dir=child_input.out_dir,
        refusals=limits.deaths(),
        reads=[path for path in reads if path],
    )


async def _fetch(
    get: Callable[[str, Path, str], None],
    path: str,
    local: Path,
    sha256: str,
    retry_seconds: Sequence[float] = RETRY_SECONDS,
    *,
    missing_is_final: bool = False,
) -> None:
    patient_for = OSError if missing_is_final else (OSError, ArtifactMissing)
    for delay in (*retry_seconds, None):
        try:
            await asyncio.to_thread(get, path, local, sha256)
            return
        except patient_for as error:
            if delay is None:
                raise
            _log.warning("%s cannot be read from the artifact store, trying again: %s", path, error)
            await asyncio.sleep(delay)


def child_environment(settings: ServiceSettings) -> dict[str, str]:
    """Returns a child's environment: its threads."""
    return {
        "OMP_NUM_THREADS": str(settings.child_threads),
        # A waiting thread that spins would take a core that a gateway on the same machine needs.
        "OMP_WAIT_POLICY": "PASSIVE",
        # NumPy and Arrow would start threads when they are imported, and a warm spare is confined after its imports.
        "OPENBLAS_NUM_THREADS": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        "TOKENIZERS_PARALLELISM": "false",
        # Other pools reserve a gigabyte in advance, which a limit of memory would not see being used.
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }


def child_devices(gpus: int | None) -> dict[str, str]:
    """Returns the environment that selects a child's devices. With 0 GPUs it sees none."""
    if gpus == 0:
        return {"CUDA_VISIBLE_DEVICES": ""}
    if gpus is None:
        return {}
    # With more visible GPUs than processes, the Trainer would spread every batch over all of them.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(gpus)))
    # By default CUDA numbers the fastest GPU 0; NVML, whose numbers the hardware has, numbers by bus.
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(visible.split(",")[:gpus])}
