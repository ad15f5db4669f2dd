"""Prepares stage 1: fetches the datasets and the base model for the preflight child."""

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from pydantic import SecretStr

from chassis.child.child_process import ChildCommand
from chassis.child.spare import SpareCommand
from chassis.preparation import say
from chassis.store.artifact_store import ArtifactStore, on_disk_of
from engine.catalogue import Catalogue
from engine.config.job import JobConfig
from engine.config.spec_proto import spec_to_dict
from engine.config.start import TrainedData
from engine.data.content_key import content_key
from engine.errors import JobError
from engine.file_hash import sha256_of
from engine.hub_datasets import HubDataset
from engine.plan.resolve import resolve_length
from engine.plan.resolved import Resolved
from engine.random_reference import CORPUS_TOKENIZER, RandomReference
from finetuneflow.v1.event_pb2 import Event
from finetuneflow.v1.work_pb2 import Assignment
from services.attempt_inputs import (
    check_base_of_start,
    child_command,
    child_environment,
    corpus_tokenizer,
    dataset_files,
    download_progress,
    fetched_model,
    job_configuration,
    provided_datasets,
    reusable_shards,
)
from services.child_input import ModelFiles
from services.hardware import read_hardware
from services.hub_access import HubAccess, job_access
from services.hub_files import download, hub_of, provided_hub_files
from services.probe.hub_sources import HashNotes, hub_sources, pinned_spec
from services.probe.settings import ProbeSettings
from services.probe.worker.child_input import PreflightInput
from services.provided_files import ProvidedFile, ProvidedFiles, check_room, room_for_corpus, streams


class PreflightStage:
    """Runs `services.probe.worker`."""

    service = "probe"

    def __init__(self, settings: ProbeSettings, catalogue: Catalogue) -> None:
        self._settings = settings
        self._catalogue = catalogue

    async def prepare(
        self, assignment: Assignment, workdir: Path, store: ArtifactStore, secrets: Mapping[str, SecretStr]
    ) -> ChildCommand:
        """Raises JobError for a base model or hub dataset that cannot be used, SystemFailure for an unreachable hub."""
        hardware = assignment.hardware
        if not assignment.HasField("hardware"):
            hardware = await asyncio.to_thread(read_hardware, self._settings.node_id, self._settings.home)
        access = job_access(self._settings, assignment, secrets)
        hub = hub_of(access, self._settings.max_dataset_bytes)
        pinned, files = await asyncio.to_thread(pinned_spec, assignment.merged_spec, hub)
        model = await self._model(assignment, access, store, workdir)
        check_base_of_start(assignment, model)
        config = job_configuration(pinned)
        streamed = _corpus(config)
        uploaded = {dataset.id for dataset in assignment.datasets}
        sources = await dataset_files(assignment, store, workdir, uploaded - streamed)
        folder, apart = workdir / "sources", [file for file in files if file.reference in streamed]
        downloaded = await asyncio.to_thread(download, hub, [each for each in files if each not in apart], folder)
        provided = provided_datasets(assignment, store, workdir, streamed)
        provided |= provided_hub_files(hub, apart, folder / "corpus", {}, HashNotes(workdir).add)
        downloaded += [HubDataset(file, provided[file.reference].path, file.sha256) for file in apart]
        sha256s = {dataset.id: dataset.sha256 for dataset in assignment.datasets}
        # A file at a commit never changes, so its name serves where the hub states no hash.
        sha256s |= {one.file.reference: one.sha256 or one.file.reference for one in downloaded}
        out_dir = workdir / "out"
        key = await asyncio.to_thread(_content_key, config, sha256s, model)
        shards = await reusable_shards(assignment, store, out_dir, key)
        corpus = self._provided(config, provided, workdir)
        child_input = PreflightInput(
            config=config,
            given=spec_to_dict(assignment.spec),
            model=model,
            sources=sources
            | {one.file.reference: one.path for one in downloaded}
            | {name: file.path for name, file in provided.items()},
            requests=corpus.requests if corpus else None,
            hub=hub_sources(downloaded),
            content_key=key,
            # The child moves them, so they are where it may write.
            shards=shards,
            out_dir=out_dir,
            trained_data=[TrainedData(list(data.datasets), data.split_key) for data in assignment.start.trained_data],
            processes=self._settings.child_threads,
            limits=self._settings.preflight_limits,
            node_id=self._settings.node_id,
            hardware=MessageToDict(hardware, preserving_proto_field_name=True),
            observed=[MessageToDict(speed, preserving_proto_field_name=True) for speed in assignment.observed],
            prices=self._settings.prices,
            holds_artifacts=on_disk_of(self._settings.artifacts, self._settings.home),
        )
        command = child_command(
            self._settings, child_input, workdir, [model.path, self._settings.prices], limits=child_input.limits
        )
        return replace(command, provide=corpus.provide) if corpus else command

    def _provided(self, config: JobConfig, files: Mapping[str, ProvidedFile], workdir: Path) -> ProvidedFiles | None:
        """Returns the files of a streamed corpus, which are downloaded while the child runs; None for other jobs.
        Raises JobError if one does not fit on the disk."""
        if not files:
            return None
        limit = room_for_corpus(self._settings.corpus_cache_bytes, workdir, self._settings.slots)
        read = {place: file for stream in streams(config, files) for place, file in stream.items()}
        check_room([read], limit, 1, "FTF_PROBE_CORPUS_CACHE_BYTES")
        return ProvidedFiles(files, workdir / "out", limit, self._settings.preparation_stall_seconds)

    async def _model(
        self, assignment: Assignment, access: HubAccess, store: ArtifactStore, workdir: Path
    ) -> ModelFiles:
        """Returns the base model. Random weights are made by `finish`, when the job is known to be possible, unless
        they are compared with those of the adapter that the job starts from."""
        name, start = assignment.merged_spec.base_model, assignment.start
        if not start.HasField("checkpoint"):
            later = RandomReference.parse(name) is not None
            return await fetched_model(self._catalogue, name, access, tokenizer_only=later)
        tokenizer = await corpus_tokenizer(assignment, name, start.base_tokenizer_path, store, workdir)
        return await fetched_model(self._catalogue, name, access, tokenizer=tokenizer)

    async def finish(self, assignment: Assignment, event: Event, workdir: Path, store: ArtifactStore) -> Event:
        """Adds the hashes of hub datasets, makes the random weights of the base model and completes its identity."""
        result = event.stage_completed.preflight
        HashNotes(workdir).complete(result)
        given = PreflightInput.model_validate_json((workdir / "input.json").read_bytes()).model
        named = RandomReference.parse(given.id)
        if named is None:
            return event
        file, trained = workdir / "tokenizer.json", named.needs_corpus or named.corpus_sha256
        if trained:
            result.base_model.tokenizer_path = f"{result.shards_path}/{CORPUS_TOKENIZER}"
            shards = f"{assignment.tenant}/{result.shards_path}"
            await asyncio.to_thread(
                store.get_file_of_folder, shards, CORPUS_TOKENIZER, file, result.shards_manifest_sha256
            )
        if given.weights_sha256:
            return event
        if named.needs_corpus:
            named = named.with_corpus_tokenizer(sha256_of(file))
        say("making_model", str(named))
        made = await asyncio.to_thread(
            self._catalogue.make,
            str(named),
            given.path,
            tokenizer=file if trained else None,
            on_progress=download_progress(),
        )
        result.base_model.id, result.base_model.weights_sha256 = made.id, made.weights_sha256
        result.base_model.num_parameters, result.base_model.architecture = made.num_parameters, made.architecture
        return event

    def spare(self) -> SpareCommand:
        """Returns how to start a child that completes the imports of a preflight."""
        return SpareCommand([sys.executable, "-m", "services.probe.worker"], child_environment(self._settings))


def _corpus(config: JobConfig) -> set[str]:
    """Returns the ids of the datasets that are streamed, and used for nothing else."""
    if not config.hyperparameters.streaming:
        return set()
    held_out = {source.dataset for source in config.evaluation_data}
    asked = {config.evaluation.questions, config.evaluation.regression}
    return {source.dataset for source in config.training_data} - held_out - asked


def _content_key(config: JobConfig, sha256s: Mapping[str, str], model: ModelFiles) -> str:
    """Returns the key by which token shards of an earlier job are found; empty for a job that the child will refuse."""
    try:
        resolved = Resolved(config)
        resolve_length(resolved, model.context_length, asked=False)
        return content_key(resolved.config, model.path, sha256s)
    except (JobError, KeyError):
        return ""
