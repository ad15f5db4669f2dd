"""What a supervisor brings to its child before it starts: base model, folders of the artifact store, environment."""

import asyncio
import logging
import os
from pathlib import Path

from pydantic import ValidationError

from chassis.artifacts import ArtifactCorrupt, ArtifactMissing, ArtifactStore
from engine.catalogue import Catalogue, LocalModel
from engine.config.job import JobConfig
from engine.config.wire import resolved_config
from engine.errors import JobError, Violation
from finetuneflow.v1.stage_result_pb2 import BaseModelIdentity
from finetuneflow.v1.work_pb2 import Assignment
from services.settings import ServiceSettings

_log = logging.getLogger(__name__)


class VersionMismatch(Exception):
    """The gateway that resolved the job's configuration runs another version than this process."""


def job_configuration(assignment: Assignment) -> JobConfig:
    """The resolved configuration. VersionMismatch when its fields or ranges are not the ones known here."""
    try:
        return resolved_config(assignment.resolved_spec)
    except ValidationError as error:
        raise VersionMismatch(f"the resolved spec is not understood here: {error}") from error


def catalogue(settings: ServiceSettings) -> Catalogue:
    """The base models of this installation."""
    return Catalogue(settings.home, settings.models)


async def base_model(models: Catalogue, identity: BaseModelIdentity, token: str) -> LocalModel:
    """The very weights that preflight saw, fetched where they are not here yet.

    JobError("BASE_MODEL_CHANGED") when another node, or an operator's folder, has other weights under that name.
    """
    reference = f"{identity.id}@{identity.revision}" if "/" in identity.id else identity.id
    local = await asyncio.to_thread(models.fetch, reference, token or None)
    if local.weights_sha256 != identity.weights_sha256:
        message = f"The weights of {identity.id} on this node are not the ones that preflight saw."
        raise JobError(
            "BASE_MODEL_CHANGED",
            message,
            "Create the job again; if it happens again, have the operator put the same files on every node.",
            [Violation("spec.base_model", message)],
        )
    return local


async def token_shards(assignment: Assignment, store: ArtifactStore, workdir: Path) -> Path:
    """Preflight's folder: train/, eval/ and what else it prepared."""
    found, folder = assignment.preflight, workdir / "data"
    path = f"{assignment.tenant}/{found.shards_path}"
    await asyncio.to_thread(store.get_folder, path, folder, found.shards_manifest_sha256)
    return folder


async def best_checkpoint(assignment: Assignment, store: ArtifactStore, workdir: Path) -> Path:
    """The checkpoint that training chose."""
    chosen, folder = assignment.training, workdir / "checkpoint"
    path = f"{assignment.tenant}/{chosen.best_checkpoint_path}"
    await asyncio.to_thread(store.get_folder, path, folder, chosen.best_checkpoint_manifest_sha256)
    return folder


async def newest_checkpoint(assignment: Assignment, store: ArtifactStore, workdir: Path) -> Path | None:
    """The newest accepted checkpoint that is whole; None when the training has to start from the beginning."""
    for checkpoint in assignment.checkpoints:
        folder = workdir / "resume" / f"step-{checkpoint.step}"
        path = f"{assignment.tenant}/{checkpoint.path}"
        try:
            await asyncio.to_thread(store.get_folder, path, folder, checkpoint.manifest_sha256)
        except (ArtifactMissing, ArtifactCorrupt) as error:
            _log.warning("checkpoint of step %d cannot be used, trying an older one: %s", checkpoint.step, error)
        else:
            return folder
    return None


def child_environment(settings: ServiceSettings, *, gpus: int | None = None) -> dict[str, str]:
    """What a child finds beside the pipe: its threads, its devices, its caches. With 0 GPUs it sees none."""
    cache = settings.home / "cache"
    environment = {
        "OMP_NUM_THREADS": str(settings.child_threads),
        # A waiting thread that spins takes the core that a gateway on the same machine needs.
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HOME": str(cache / "huggingface"),
        "MPLCONFIGDIR": str(cache / "matplotlib"),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if gpus == 0:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif gpus == 1:
        # With more in sight the Trainer would spread every batch over all of them.
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return environment
