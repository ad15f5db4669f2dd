"""Stage 2, the supervisor's part: provides token shards, base model and the latest checkpoint to the child."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr

from chassis.child.child_process import ChildCommand
from chassis.child.spare import SpareCommand
from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from engine.config.job import JobConfig
from engine.config.spec_proto import data_sources
from finetuneflow.v1.event_pb2 import Event
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from finetuneflow.v1.work_pb2 import Assignment
from services.attempt_inputs import (
    RETRY_SECONDS,
    base_model,
    child_command,
    child_environment,
    job_configuration,
    newest_checkpoint,
    provided_datasets,
    start_checkpoint,
    token_shards,
)
from services.hub_access import HubAccess, job_access
from services.hub_files import hub_of, pin, provided_hub_files
from services.provided_files import ProvidedFiles, check_room, room_for_corpus, streams
from services.trainer.ray_cluster import RayCluster
from services.trainer.settings import TrainerSettings
from services.trainer.worker.child_input import TrainingInput, UnusableCheckpoint


class TrainingStage:
    """Runs `services.trainer.worker`."""

    service = "trainer"

    def __init__(
        self,
        settings: TrainerSettings,
        catalogue: Catalogue,
        store_retry_seconds: Sequence[float] = RETRY_SECONDS,
        cluster: RayCluster | None = None,
    ) -> None:
        """`store_retry_seconds`: delays between attempts to read shards and checkpoints from the artifact store.
        Trainings run on the `cluster`, if there is one."""
        self._settings = settings
        self._cluster = cluster
        self._catalogue = catalogue
        self._store_retry_seconds = store_retry_seconds

    async def prepare(
        self, assignment: Assignment, workdir: Path, store: ArtifactStore, secrets: Mapping[str, SecretStr]
    ) -> ChildCommand:
        """Raises JobError if this node's weights are others than in preflight, SystemFailure without checkpoints."""
        config = job_configuration(assignment.resolved_spec)
        hub = job_access(self._settings, assignment, secrets)
        data_dir = await token_shards(assignment, store, workdir, self._store_retry_seconds)
        out_dir = workdir / "out"
        corpus = await self._corpus(config, assignment, workdir, store, hub)
        checkpoint, unusable = await newest_checkpoint(assignment, store, workdir, self._store_retry_seconds)
        start = None
        if assignment.HasField("start") and (checkpoint is None or config.start_mode == "new"):
            start = await start_checkpoint(assignment, store, workdir, self._store_retry_seconds)
        child_input = TrainingInput(
            config=config,
            model=await base_model(self._catalogue, assignment, hub, store, workdir),
            data_dir=data_dir,
            sources=corpus.paths if corpus else {},
            requests=corpus.requests if corpus else None,
            out_dir=out_dir,
            resume=checkpoint,
            start=start,
            unusable_checkpoints=[UnusableCheckpoint(step=step, problem=why) for step, why in unusable.items()],
            total_steps=assignment.preflight.total_steps,
            prior_runtime_seconds=assignment.prior_training_seconds,
            threads=self._threads(config.world_size),
            extensions=self._settings.extensions,
        )
        gpus = config.resources.gpus
        command = child_command(self._settings, child_input, workdir, [child_input.model.path], gpus=gpus)
        if corpus:
            command = replace(command, provide=corpus.provide)
        if self._cluster:
            return self._cluster.command(command, child_input)
        # bitsandbytes opens the GPU when it is imported, so the warm spare does not import it.
        quantised = config.method == "qlora" or config.hyperparameters.optim.endswith("bit")
        command = replace(command, cold=quantised, on_cpu=gpus == 0)
        if config.world_size == 1:
            return command
        required = self._settings.child_confinement == "required"
        # NCCL exchanges data between the GPUs of a node through shared memory.
        shared_memory = [Path("/dev/shm")] if gpus else []  # noqa: S108
        return replace(command, network="own" if required else "own_or_ephemeral", writes=shared_memory)

    async def _corpus(
        self, config: JobConfig, assignment: Assignment, workdir: Path, store: ArtifactStore, hub: HubAccess
    ) -> ProvidedFiles | None:
        """Returns the files of a corpus that is streamed, which are downloaded while the child runs; None for other
        jobs. Raises JobError if those that are read at once do not fit on the disk."""
        if not config.hyperparameters.streaming:
            return None
        pinned = FineTuningJobSpec()
        pinned.training_data.extend(assignment.resolved_spec.training_data)
        datasets = hub_of(hub, self._settings.max_dataset_bytes)
        on_hub = await asyncio.to_thread(pin, data_sources(pinned), datasets)
        sha256s = {one.pinned: one.sha256 for one in assignment.preflight.hub_datasets}
        named, retry = {source.dataset for source in config.training_data}, self._store_retry_seconds
        files = provided_datasets(assignment, store, workdir, named, retry)
        files |= provided_hub_files(datasets, on_hub, workdir / "sources", sha256s, retry_seconds=retry)
        limit = room_for_corpus(self._settings.corpus_cache_bytes, workdir, self._settings.slots)
        check_room(streams(config, files), limit, config.world_size, "FTF_TRAINER_CORPUS_CACHE_BYTES")
        return ProvidedFiles(files, workdir / "out", limit, self._settings.preparation_stall_seconds)

    def _threads(self, world_size: int) -> int:
        """Returns the number of threads of all processes together."""
        return self._settings.rank_threads * world_size if self._cluster else self._settings.child_threads

    def spare(self) -> SpareCommand | None:
        """Returns how to start a child that completes the imports of a training. None if trainings run elsewhere."""
        if self._cluster:
            return None
        return SpareCommand([sys.executable, "-m", "services.trainer.worker"], child_environment(self._settings))

    async def finish(self, assignment: Assignment, event: Event, workdir: Path, store: ArtifactStore) -> Event:
        """Completes the result with a best checkpoint that an earlier attempt wrote."""
        result = event.stage_completed.training
        if not result.best_checkpoint_manifest_sha256:
            for checkpoint in assignment.checkpoints:
                if checkpoint.step == result.best_step:
                    result.best_checkpoint_path = checkpoint.path
                    result.best_checkpoint_manifest_sha256 = checkpoint.manifest_sha256
                    break
        return event
