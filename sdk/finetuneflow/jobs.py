"""Fine-tuning jobs."""

from __future__ import annotations

import builtins
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from finetuneflow.artifacts import AsyncArtifacts
from finetuneflow.blocking import Blocking, blocking, iterating
from finetuneflow.datasets import CHECK_SECONDS, AsyncDatasets
from finetuneflow.enums import enum_number
from finetuneflow.errors import (
    ApiError,
    FailedPrecondition,
    InvalidArgument,
    JobCancelled,
    JobFailed,
    NotFound,
    Violation,
)
from finetuneflow.fields import fill
from finetuneflow.packages import FileProgress, download_package, named_progress
from finetuneflow.paging import paged
from finetuneflow.resources.event import Event, Severity
from finetuneflow.resources.job import Checkpoint, Job, JobState, MetricSeries
from finetuneflow.resources.preflight import Preflight
from finetuneflow.spec import SpecDraft, draft_spec
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import fine_tuning_job_pb2
from finetuneflow.v1 import fine_tuning_service_pb2 as pb
from finetuneflow.v1 import fine_tuning_service_pb2_grpc as pb_grpc
from finetuneflow.v1 import probe_service_pb2 as probe_pb
from finetuneflow.v1 import probe_service_pb2_grpc as probe_pb_grpc
from finetuneflow.v1 import recipe_service_pb2 as recipe_pb
from finetuneflow.v1 import recipe_service_pb2_grpc as recipe_pb_grpc
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from finetuneflow.watching import wait, watch, watch_request

Source = str | PathLike[str] | Mapping[str, Any]


class AsyncJobs:
    """`client.jobs` of an AsyncClient."""

    def __init__(self, transport: CallPolicy, datasets: AsyncDatasets, artifacts: AsyncArtifacts) -> None:
        self._transport = transport
        self._datasets = datasets
        self._artifacts = artifacts
        self._stub = pb_grpc.FineTuningServiceStub(transport.channel)
        self._probe = probe_pb_grpc.ProbeServiceStub(transport.channel)
        self._recipes = recipe_pb_grpc.RecipeServiceStub(transport.channel)

    async def create(
        self,
        *,
        base_model: str | None = None,
        training_data: Source | Sequence[Source] | None = None,
        evaluation_data: Source | Sequence[Source] | None = None,
        method: str | None = None,
        recipe: str | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
        lora: Mapping[str, Any] | None = None,
        quantization: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
        export: Mapping[str, Any] | None = None,
        holdout_fraction: float | None = None,
        chat_template: str | None = None,
        system_prompt: str | None = None,
        phases: Sequence[Mapping[str, Any]] | None = None,
        integrations: Sequence[Mapping[str, Any]] | None = None,
        resources: Mapping[str, Any] | None = None,
        secrets: Mapping[str, str] | None = None,
        display_name: str | None = None,
        task: str | None = None,
        labels: Mapping[str, str] | None = None,
        max_attempts: int | None = None,
        seed: int | None = None,
        priority: int | None = None,
        start_from: str | None = None,
        start_mode: str | None = None,
        spec: FineTuningJobSpec | Mapping[str, Any] | None = None,
        request_id: str = "",
        validate_only: bool = False,
        on_upload: FileProgress | None = None,
    ) -> Job:
        """Creates a job and starts it. Local files are uploaded first.

        None leaves a field to the recipe; the defaults below are those of the recipe `default`. Give either single
        fields or `spec`.

        Args:
            base_model: Required, unless start_from names a job. A catalogue alias (`smollm2-135m`), a Hugging Face id
                (`org/name`, optionally `@revision`), a model with random weights (`inl-small`, `random:org/name`;
                optionally `,tokenizer=…,vocab_size=…,seed=…`), or a tuned model, which is a short form of start_from.
            training_data: Datasets to train on: one source or a list; a job has at most 256. A source is the path of a
                local file, or of a folder, each of whose files of rows becomes a source, sorted by path; a dataset id
                (`ds_…`); a dataset on the hub (`hf://owner/name[@revision][/path]`), each of whose files becomes a
                source in preflight; or a table `{"dataset": …, "weight": …, "mapping": {…}, "template": …, "format": …,
                "max_samples": …, "max_tokens": …}`. Required unless `phases` is set.
            evaluation_data: Datasets to evaluate on, as for training_data. Default: holdout_fraction of the training
                rows.
            method: `lora`, `qlora`, `full` or `auto`. Default `auto`: preflight chooses by the memory of the hardware.
            recipe: Name of a preset for the unset fields. Default `default`.
            hyperparameters: Table of optimization, batching and schedule: `num_epochs`, `learning_rate`, `max_length`
                and the other fields of Hyperparameters.
            lora: Table of the adapter's shape: `r`, `lora_alpha`, `lora_dropout`, `bias`, `target_modules`,
                `use_rslora`, `use_dora`, `init_lora_weights` and the other fields of LoraSpec. For methods `lora` and
                `qlora`.
            quantization: Table of the precision of the base weights: `bits`, `bnb_4bit_quant_type`,
                `bnb_4bit_use_double_quant`, `bnb_4bit_compute_dtype`. For method `qlora`.
            evaluation: Table of the evaluation (stage 3): `enabled`, `num_samples`, `prompts`, `max_new_tokens`, and
                `prompt_steps` or `prompt_epochs`, which has `prompts` answered in training too.
            export: Table of the export (stage 4): `formats`, `dtype`, `merge_base`, `gguf_types`, and `hub`, a table
                that pushes the package to the hub (`repo_id`, `private`, `revision`, `commit_message`).
            holdout_fraction: Fraction of the training rows held out for evaluation if evaluation_data is empty. Range
                [0, 0.5]; default 0.1.
            chat_template: Jinja chat template that replaces the model's own, run in a sandbox. At most 32 KiB. Default:
                the model's.
            system_prompt: System turn for every conversation that has none of its own. At most 16 KiB. Default: none.
            phases: Curriculum of at most 16 phases, trained one after the other: tables with `training_data`,
                `num_epochs` and `display_name`. Conflicts with training_data. Default: none.
            integrations: Webhooks and trackers that follow the job, at most 16: tables as
                `client.integrations.create` takes them. Default: none.
            resources: Table of the requirements on the node: `pool` (default `default`), `gpus` (default 1 on a node
                with a GPU, otherwise 0), `world_size` (processes that train together; default `gpus`, or 1 on a CPU)
                and `parallelism` (`auto`, `ddp`, `zero2`, `zero2_offload` or `fsdp`; default `auto`).
            secrets: Secrets that the job uses: use → name of the secret, never its value. `hub_token` is the token
                with which models and datasets of the hub are read, `hub_write_token` that of `export.hub`. Default:
                none.
            display_name: Display name, at most 128 characters. Default: derived from the base model and the first
                dataset.
            task: Short description of the task, printed in the report. At most 256 characters. Default `sft`.
            labels: Labels to filter jobs by: at most 64. Keys match [a-z][a-z0-9_-]{0,62}; values have at most 256
                characters. Default: none.
            max_attempts: Number of failures after which the job ends as FAILED; pauses and drains do not count. Range
                [1, 20]; default 3.
            seed: Seed of data order, dropout, initialization and sampling. Range [0, 2^32 - 1]; default 42.
            priority: Priority among the waiting jobs of your tenant: higher ones start first, equal ones by age. It
                does not change the share that your tenant has of the workers. Range [-10, 10]; default 0.
            start_from: The adapter that training starts from: `ft:<job_id>` (`job.tuned_model`), the best checkpoint of
                a job whose training has finished, or `ft:<job_id>@<step>`, with that job's base model; or the id of an
                adapter of base_model that `datasets.upload_adapter` returned. Default: none, and training starts from
                the base model.
            start_mode: `continue` trains the weights of that adapter further, with its settings of `lora`; `new` keeps
                it as it is and trains a new adapter on top of it, and saves both as one. Default `continue`.
            spec: All of the fields above at once, as a message or as a table (the content of a TOML file). Conflicts
                with the fields above.
            request_id: Makes the call idempotent: a repeated call with the same request_id and spec returns the same
                job. At most 128 characters. Default: a new one for each call, so that retries of this call create at
                most one job.
            validate_only: Returns the job as preflight would leave it, without an id, and stores nothing: uploaded
                files are deleted again. The reason with which preflight would end the job is raised as
                InvalidArgument; `preflight` returns all of them at once. Default False.
            on_upload: Called with the file's name, the bytes sent so far and the size of the file, in bytes.

        Returns:
            The new job, in state VALIDATING; for a repeated request_id, the existing job.

        Raises:
            InvalidArgument: A field is unknown, out of range or conflicts with another one; see `violations`.
            NotFound: A dataset, or what start_from names, does not exist.
            FailedPrecondition: The job that start_from names has not finished its training.
            Unimplemented: The job that start_from names has no adapter, or a field is not available yet.
            AlreadyExists: The request_id was used with another spec.
            OSError: A file cannot be read.
            Unavailable: With validate_only, no probe is reachable.
        """
        single = {
            "base_model": base_model,
            "training_data": training_data,
            "evaluation_data": evaluation_data,
            "method": method,
            "recipe": recipe,
            "hyperparameters": hyperparameters,
            "lora": lora,
            "quantization": quantization,
            "evaluation": evaluation,
            "export": export,
            "holdout_fraction": holdout_fraction,
            "chat_template": chat_template,
            "system_prompt": system_prompt,
            "phases": phases,
            "integrations": integrations,
            "resources": resources,
            "secrets": secrets,
            "display_name": display_name,
            "task": task,
            "labels": labels,
            "max_attempts": max_attempts,
            "seed": seed,
            "priority": priority,
            "start_from": start_from,
            "start_mode": start_mode,
        }
        draft = _draft(spec, {name: value for name, value in single.items() if value is not None})
        uploaded = await self._upload(draft, validate_only, on_upload)
        request = pb.CreateFineTuningJobRequest(
            spec=draft.spec, request_id=request_id or uuid.uuid4().hex, validate_only=validate_only
        )
        try:
            longer = {"try_seconds": CHECK_SECONDS} if validate_only else {}
            response = await self._transport.call(self._stub.CreateFineTuningJob, request, **longer)
        except ApiError as error:
            if uploaded and not validate_only:
                kept = ", ".join(f"{path.name} as {dataset_id}" for path, dataset_id in uploaded.items())
                upload_advice = (
                    f"The server keeps {kept}; the same file will not be uploaded again. "
                    f"To delete: `ftf datasets delete {' '.join(uploaded.values())}`."
                )
                error.advice = f"{error.advice}\n{upload_advice}".strip()
            raise
        finally:
            if validate_only:
                await self._delete_uploads(uploaded)
        job = response.fine_tuning_job
        if validate_only:
            _replace_ids_by_paths(uploaded, job.spec, job.resolved_spec)
        return Job.from_proto(job)

    async def preflight(
        self,
        /,
        *,
        spec: FineTuningJobSpec | Mapping[str, Any] | None = None,
        node_id: str = "",
        on_upload: FileProgress | None = None,
        **fields: Any,
    ) -> Preflight:
        """Runs the checks of preflight (stage 1) without creating a job. Takes up to an hour.

        Nothing is stored on the server; uploaded files are deleted again.

        Args:
            spec: All fields at once, as in `create`.
            node_id: Node whose hardware is used. Default: the trainer of the job's pool with the most free memory.
            on_upload: Called with the file's name, the bytes sent so far and the size of the file, in bytes.
            **fields: Single fields, as in `create`.

        Returns:
            The settings with reasons; statistics of the rows; estimated memory, disk, time and cost; all errors,
            warnings and suggested improvements. A job that would be refused is a result (`refused`), not an exception.

        Raises:
            InvalidArgument: `create` refuses the settings immediately, or the base model cannot be trained.
            NotFound: A dataset or the node does not exist.
            OSError: A file cannot be read.
            Unavailable: No probe, or not the model hub, is reachable.
        """
        draft = _draft(spec, {name: value for name, value in fields.items() if value is not None})
        uploaded = await self._upload(draft, True, on_upload)
        request = probe_pb.PreflightFineTuningJobRequest(spec=draft.spec, node_id=node_id)
        method = self._probe.PreflightFineTuningJob
        try:
            response = await self._transport.call(method, request, try_seconds=CHECK_SECONDS)
        finally:
            await self._delete_uploads(uploaded)
        _replace_ids_by_paths(uploaded, response.resolved_spec)
        return Preflight.from_proto(response)

    async def _delete_uploads(self, uploaded: Mapping[Path, str]) -> None:
        for dataset_id in uploaded.values():
            await self._datasets.delete(dataset_id)

    async def _check_recipe(self, name: str) -> None:
        """Raises InvalidArgument for an unknown recipe, which should be known before gigabytes are uploaded."""
        try:
            await self._transport.call(self._recipes.GetRecipe, recipe_pb.GetRecipeRequest(name=name))
        except NotFound as error:
            raise InvalidArgument(
                error.message, reason="INVALID_CONFIG", violations=[Violation("spec.recipe", error.message)]
            ) from error

    async def _upload(self, draft: SpecDraft, throwaway: bool, on_upload: FileProgress | None) -> dict[Path, str]:
        ids: dict[Path, str] = {}
        if draft.files and draft.spec.recipe:
            await self._check_recipe(draft.spec.recipe)
        for file in draft.files:
            path = file.path
            if path not in ids:
                # The same file is the same dataset, except in a dry run, which deletes it: no job may use that one.
                progress = None if on_upload is None else named_progress(on_upload, path.name)
                request_id = uuid.uuid4().hex if throwaway else ""
                dataset = await self._datasets.upload(
                    path, display_name=file.display_name, request_id=request_id, progress=progress
                )
                ids[path] = dataset.id
            file.name(ids[path])
        return ids

    async def get(self, job_id: str) -> Job:
        """Returns one job, with its attempts.

        Args:
            job_id: Id of the job.

        Returns:
            The job in its current state.

        Raises:
            NotFound: The job does not exist.
        """
        response = await self._transport.call(self._stub.GetFineTuningJob, pb.GetFineTuningJobRequest(job_id=job_id))
        return Job.from_proto(response.fine_tuning_job)

    def list(
        self,
        *,
        states: Sequence[JobState | str] = (),
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[Job, None]:
        """Lists the jobs, newest first. Pages are fetched as needed.

        Args:
            states: Lists only jobs in one of these states. Default: all.
            labels: Lists only jobs that have all of these labels. Default: all.
            limit: Maximum number of jobs. Default: no limit.

        Yields:
            The jobs, without their attempts.

        Raises:
            InvalidArgument: A state is unknown.
        """
        request = pb.ListFineTuningJobsRequest(
            states=[enum_number(fine_tuning_job_pb2.JobState.DESCRIPTOR, state, "states") for state in states],
            labels=dict(labels or {}),
        )
        method = self._stub.ListFineTuningJobs
        return paged(self._transport, method, request, "fine_tuning_jobs", limit, Job.from_proto)

    async def cancel(self, job_id: str) -> Job:
        """Cancels a job. Its checkpoints are kept. Cancelling a cancelled job has no effect.

        Args:
            job_id: Id of the job.

        Returns:
            The job: CANCELLED, or CANCELLING until its worker has stopped.

        Raises:
            NotFound: The job does not exist.
            FailedPrecondition: The job has SUCCEEDED or FAILED.
        """
        request = pb.CancelFineTuningJobRequest(job_id=job_id)
        return Job.from_proto((await self._transport.call(self._stub.CancelFineTuningJob, request)).fine_tuning_job)

    async def pause(self, job_id: str) -> Job:
        """Pauses a job: its worker writes a checkpoint and releases the device. Pausing a paused job has no effect.

        Args:
            job_id: Id of the job.

        Returns:
            The job: PAUSED, or PAUSING until its worker has written the checkpoint.

        Raises:
            NotFound: The job does not exist.
            FailedPrecondition: The job has ended or is being cancelled.
        """
        request = pb.PauseFineTuningJobRequest(job_id=job_id)
        return Job.from_proto((await self._transport.call(self._stub.PauseFineTuningJob, request)).fine_tuning_job)

    async def resume(self, job_id: str) -> Job:
        """Resumes a paused job from its latest checkpoint. Resuming a running job has no effect.

        Args:
            job_id: Id of the job.

        Returns:
            The job, in state VALIDATING, QUEUED or RUNNING.

        Raises:
            NotFound: The job does not exist.
            FailedPrecondition: The job has ended or is being cancelled.
        """
        request = pb.ResumeFineTuningJobRequest(job_id=job_id)
        return Job.from_proto((await self._transport.call(self._stub.ResumeFineTuningJob, request)).fine_tuning_job)

    async def delete(self, job_id: str) -> None:
        """Deletes a job that has ended, with its history and artifacts.

        Args:
            job_id: Id of the job.

        Raises:
            NotFound: The job does not exist.
            FailedPrecondition: The job has not ended.
        """
        await self._transport.call(self._stub.DeleteFineTuningJob, pb.DeleteFineTuningJobRequest(job_id=job_id))

    def watch(
        self,
        job_id: str,
        *,
        after_sequence: int = 0,
        kinds: Sequence[str] = (),
        min_severity: Severity | str | None = None,
        give_up_after_seconds: float = 60.0,
        on_disconnect: Callable[[Exception], None] | None = None,
        on_reconnect: Callable[[], None] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Replays the events of a job, then follows it live until it ends.

        A lost connection is replaced, if possible by one to another gateway, and the stream resumes after the last
        event, without gaps or repeats. Closing the iterator ends the stream.

        Args:
            job_id: Id of the job.
            after_sequence: Yields only events with a greater sequence. Default 0: from the beginning.
            kinds: Yields only events of these kinds, such as `log` or `eval`. Default: all.
            min_severity: Yields only events of this severity or a higher one: `debug`, `info`, `warning` or `error`.
                Default: all.
            give_up_after_seconds: Seconds without any gateway after which ServerUnreachable is raised. Default 60.
            on_disconnect: Called with the error when the connection is lost.
            on_reconnect: Called when a gateway answers again.

        Yields:
            The events, ordered by sequence.

        Raises:
            NotFound: The job does not exist.
            OutOfRange: after_sequence is beyond the latest event.
            InvalidArgument: A kind or the severity is unknown.
            ServerUnreachable: No gateway answered for give_up_after_seconds.
        """
        return watch(
            self._transport,
            self._stub.WatchFineTuningJob,
            watch_request(pb.WatchFineTuningJobRequest(), after_sequence, kinds, min_severity, job_id=job_id),
            lambda: self.get(job_id),
            name=f"job {job_id}",
            give_up_after_seconds=give_up_after_seconds,
            on_disconnect=on_disconnect,
            on_reconnect=on_reconnect,
        )

    async def wait(
        self,
        job_id: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the same for Client, where no asyncio.timeout helps
        give_up_after_seconds: float = 60.0,
    ) -> Job:
        """Waits until a job has SUCCEEDED. Waits for a paused job, too.

        Args:
            job_id: Id of the job.
            timeout: Maximum time to wait in seconds. Default: no limit.
            give_up_after_seconds: Seconds without any gateway after which ServerUnreachable is raised. Default 60.

        Returns:
            The job, in state SUCCEEDED.

        Raises:
            JobFailed: The job has FAILED.
            JobCancelled: The job was CANCELLED.
            NotFound: The job does not exist.
            TimeoutError: The job has not ended within `timeout`.
            ServerUnreachable: No gateway answered for give_up_after_seconds.
        """
        job = await wait(
            self._transport,
            self._stub.WatchFineTuningJob,
            pb.WatchFineTuningJobRequest(job_id=job_id),
            lambda: self.get(job_id),
            name=f"job {job_id}",
            timeout=timeout,
            give_up_after_seconds=give_up_after_seconds,
        )
        if job.state == JobState.FAILED:
            raise JobFailed(job)
        if job.state == JobState.CANCELLED:
            raise JobCancelled(job)
        return job

    async def events(
        self, job_id: str, *, after_sequence: int = 0, kinds: Sequence[str] = ()
    ) -> AsyncGenerator[Event, None]:
        """Lists the events of a job so far, oldest first. Pages are fetched as needed.

        Args:
            job_id: Id of the job.
            after_sequence: Lists only events with a greater sequence. Default 0: from the beginning.
            kinds: Lists only events of these kinds, such as `log` or `eval`. Default: all.

        Yields:
            The events.

        Raises:
            NotFound: The job does not exist.
            OutOfRange: after_sequence is beyond the latest event.
            InvalidArgument: A kind is unknown.
        """
        while True:
            request = fill(
                pb.ListFineTuningJobEventsRequest(page_size=1000),
                job_id=job_id,
                after_sequence=after_sequence,
                kinds=kinds,
            )
            response = await self._transport.call(self._stub.ListFineTuningJobEvents, request)
            for message in response.events:
                yield Event.from_proto(message)
            if response.through_sequence <= after_sequence:
                return
            after_sequence = response.through_sequence

    async def checkpoints(self, job_id: str) -> builtins.list[Checkpoint]:
        """Lists the checkpoints from which a job can resume.

        Args:
            job_id: Id of the job.

        Returns:
            The checkpoints, newest first.

        Raises:
            NotFound: The job does not exist.
        """
        response = await self._transport.call(self._stub.ListCheckpoints, pb.ListCheckpointsRequest(job_id=job_id))
        return [Checkpoint.from_proto(checkpoint) for checkpoint in response.checkpoints]

    async def metrics(self, job_id: str, *, names: Sequence[str] = (), max_points: int = 0) -> dict[str, MetricSeries]:
        """Returns the metrics of a job as series.

        Args:
            job_id: Id of the job.
            names: Names of series, such as `loss` or `eval_loss`; at most 256. Default: all.
            max_points: Maximum number of points per series; longer series are thinned evenly. Range [2, 100,000];
                default 10,000.

        Returns:
            The series by name.

        Raises:
            NotFound: The job does not exist.
            InvalidArgument: max_points is out of range, or there are too many names.
        """
        request = fill(pb.GetMetricsRequest(), job_id=job_id, names=names, max_points=max_points)
        response = await self._transport.call(self._stub.GetMetrics, request)
        return {series.name: MetricSeries.from_proto(series) for series in response.series}

    async def download(
        self, job_id: str, to: str | PathLike[str] = ".", *, progress: FileProgress | None = None
    ) -> builtins.list[Path]:
        """Downloads every file of a job's export.

        Each file is verified, and is replaced only as a whole. A file that exists already is not downloaded again, and
        an interrupted download resumes.

        Args:
            job_id: Id of the job.
            to: Folder for the files; created if it does not exist. Default: the current folder.
            progress: Called with the file's name, the bytes received so far and the size of the file, in bytes.

        Returns:
            Paths of the files.

        Raises:
            NotFound: The job does not exist.
            FailedPrecondition: The job has no export (yet).
            IntegrityError: The bytes do not have the size or SHA-256 that the server announced.
            OSError: A file cannot be written.
        """
        paths = await download_package(self._artifacts, job_id, Path(to), progress)
        if not paths:
            state = (await self.get(job_id)).state
            raise FailedPrecondition(f"Job {job_id} has no export: it is {state}.", reason="NO_EXPORT")
        return paths


class Jobs(Blocking):
    """`client.jobs`."""

    create = blocking(AsyncJobs.create)
    preflight = blocking(AsyncJobs.preflight)
    get = blocking(AsyncJobs.get)
    list = iterating(AsyncJobs.list)
    cancel = blocking(AsyncJobs.cancel)
    pause = blocking(AsyncJobs.pause)
    resume = blocking(AsyncJobs.resume)
    delete = blocking(AsyncJobs.delete)
    watch = iterating(AsyncJobs.watch)
    wait = blocking(AsyncJobs.wait)
    events = iterating(AsyncJobs.events)
    checkpoints = blocking(AsyncJobs.checkpoints)
    metrics = blocking(AsyncJobs.metrics)
    download = blocking(AsyncJobs.download)


def _replace_ids_by_paths(uploaded: Mapping[Path, str], *specs: FineTuningJobSpec) -> None:
    """Replaces the ids of temporary datasets in a dry run's specs by the paths of their files."""
    for path, dataset_id in uploaded.items():
        for spec in specs:
            of_phases = [source for phase in spec.phases for source in phase.training_data]
            for source in (*spec.training_data, *spec.evaluation_data, *of_phases):
                if source.dataset == dataset_id:
                    source.dataset = str(path)
            for name in ("questions", "regression"):
                if getattr(spec.evaluation, name) == dataset_id:
                    setattr(spec.evaluation, name, str(path))
            # The server derives a default display name from the model and the dataset.
            spec.display_name = spec.display_name.replace(dataset_id, path.name)


def _draft(spec: FineTuningJobSpec | Mapping[str, Any] | None, single: dict[str, Any]) -> SpecDraft:
    if spec is None:
        return draft_spec(single)
    if single:
        raise InvalidArgument(
            "`spec` and single fields cannot be combined.",
            reason="INVALID_CONFIG",
            violations=[Violation(f"spec.{name}", "conflicts with `spec`; set it inside `spec`") for name in single],
        )
    return SpecDraft(spec) if isinstance(spec, FineTuningJobSpec) else draft_spec(spec)
