"""Fine-tuning jobs."""

from __future__ import annotations

import builtins
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from finetuneflow.artifacts import AsyncArtifacts
from finetuneflow.blocking import Blocking, blocking, iterating
from finetuneflow.datasets import LOOK_SECONDS, AsyncDatasets
from finetuneflow.enums import enum_number
from finetuneflow.errors import ApiError, FailedPrecondition, InvalidArgument, JobCancelled, JobFailed, Violation
from finetuneflow.fields import fill
from finetuneflow.files import safe_relative_path
from finetuneflow.paging import paged
from finetuneflow.resources.event import Event, Severity
from finetuneflow.resources.job import Checkpoint, Job, JobState, MetricSeries
from finetuneflow.resources.preflight import Preflight
from finetuneflow.spec import SpecDraft, draft_spec
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2
from finetuneflow.v1 import fine_tuning_service_pb2 as pb
from finetuneflow.v1 import fine_tuning_service_pb2_grpc as pb_grpc
from finetuneflow.v1 import probe_service_pb2 as probe_pb
from finetuneflow.v1 import probe_service_pb2_grpc as probe_pb_grpc
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from finetuneflow.watching import watch

Source = str | PathLike[str] | Mapping[str, Any]

# Called with (file name, bytes done, bytes in all).
FileProgress = Callable[[str, int, int], None]

_EXPORT_KINDS = ("export_package", "export_file")


class AsyncJobs:
    """`client.jobs` of an AsyncClient."""

    def __init__(self, transport: CallPolicy, datasets: AsyncDatasets, artifacts: AsyncArtifacts) -> None:
        self._transport = transport
        self._datasets = datasets
        self._artifacts = artifacts
        self._stub = pb_grpc.FineTuningServiceStub(transport.channel)
        self._probe = probe_pb_grpc.ProbeServiceStub(transport.channel)

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
        secrets: Sequence[str] | None = None,
        display_name: str | None = None,
        task: str | None = None,
        labels: Mapping[str, str] | None = None,
        max_attempts: int | None = None,
        seed: int | None = None,
        spec: FineTuningJobSpec | Mapping[str, Any] | None = None,
        request_id: str = "",
        validate_only: bool = False,
        on_upload: FileProgress | None = None,
    ) -> Job:
        """Creates a job and starts it.

        The arguments are the fields of FineTuningJobSpec, where ranges and defaults stand beside each; None leaves a
        field to the recipe. A source of `training_data` or `evaluation_data` is the path of a file (uploaded first),
        a dataset id, a dataset of the hub (`hf://owner/name[@revision][/path/of/file]`), or a table
        `{"dataset": ..., "weight": ..., "mapping": {...}}`. Enums are lower-case words: `method="lora"`.

        `spec` takes the whole at once, as a message or as a table (what a TOML file holds), in place of the single
        fields. With `validate_only` the answer is the job as preflight would leave it, without an id, and what
        preflight would end the job with is raised as InvalidArgument; nothing stays on the server, uploaded files
        neither. (`preflight` tells more, and of all refusals at once.) Repeating a call with the same `request_id`
        never makes a second job; without one, this call still makes at most one, however often it has to be sent.

        Raises InvalidArgument (with `violations`), NotFound for an unknown dataset, AlreadyExists when `request_id`
        stands for another spec.
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
        }
        draft = _draft(spec, {name: value for name, value in single.items() if value is not None})
        uploaded = await self._upload(draft, validate_only, on_upload)
        request = pb.CreateFineTuningJobRequest(
            spec=draft.spec, request_id=request_id or uuid.uuid4().hex, validate_only=validate_only
        )
        try:
            longer = {"try_seconds": LOOK_SECONDS} if validate_only else {}
            response = await self._transport.call(self._stub.CreateFineTuningJob, request, **longer)
        except ApiError as error:
            if uploaded and not validate_only:
                kept = ", ".join(f"{path.name} as {dataset_id}" for path, dataset_id in uploaded.items())
                stays = (
                    f"On the server stays {kept}: the same file is not sent again. "
                    f"`ftf datasets delete {' '.join(uploaded.values())}` removes it."
                )
                error.advice = f"{error.advice}\n{stays}".strip()
            raise
        finally:
            if validate_only:
                await self._forget(uploaded)
        job = response.fine_tuning_job
        if validate_only:
            _name_files(uploaded, job.spec, job.resolved_spec)
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
        """What stage 1 would say of a job, without making one: `fields` and `spec` are those of `create`.

        The settings it would run with and why, what the rows come to, memory, disk, time and cost on the trainer with
        the most free memory (or on the node `node_id`), everything that would refuse it, and what would be better.
        Nothing stays on the server, uploaded files neither.

        A job that would be refused is an answer (`refused`). Raises InvalidArgument for settings that `create` refuses
        at once and for a base model that cannot be trained, NotFound, Unavailable without a probe.
        """
        draft = _draft(spec, {name: value for name, value in fields.items() if value is not None})
        uploaded = await self._upload(draft, True, on_upload)
        request = probe_pb.PreflightFineTuningJobRequest(spec=draft.spec, node_id=node_id)
        method = self._probe.PreflightFineTuningJob
        try:
            response = await self._transport.call(method, request, try_seconds=LOOK_SECONDS)
        finally:
            await self._forget(uploaded)
        _name_files(uploaded, response.resolved_spec)
        return Preflight.from_proto(response)

    async def _forget(self, uploaded: Mapping[Path, str]) -> None:
        for dataset_id in uploaded.values():
            await self._datasets.delete(dataset_id)

    async def _upload(self, draft: SpecDraft, throwaway: bool, on_upload: FileProgress | None) -> dict[Path, str]:
        ids: dict[Path, str] = {}
        for source, path in draft.files:
            if path not in ids:
                # The same file again is the same dataset, unless it is deleted right away: then it must not be anybody
                # else's.
                progress = None if on_upload is None else _named(on_upload, path.name)
                request_id = uuid.uuid4().hex if throwaway else ""
                dataset = await self._datasets.upload(path, request_id=request_id, progress=progress)
                ids[path] = dataset.id
            source.dataset = ids[path]
        return ids

    async def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        response = await self._transport.call(self._stub.GetFineTuningJob, pb.GetFineTuningJobRequest(job_id=job_id))
        return Job.from_proto(response.fine_tuning_job)

    def list(
        self,
        *,
        states: Sequence[JobState | str] = (),
        labels: Mapping[str, str] | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[Job, None]:
        """Newest first, the next page read when it is needed; only jobs in one of `states` that carry all `labels`."""
        request = pb.ListFineTuningJobsRequest(
            states=[enum_number(fine_tuning_job_pb2.JobState.DESCRIPTOR, state, "states") for state in states],
            labels=dict(labels or {}),
        )
        method = self._stub.ListFineTuningJobs
        return paged(self._transport, method, request, "fine_tuning_jobs", limit, Job.from_proto)

    async def cancel(self, job_id: str) -> Job:
        """Ends a job. Raises NotFound, and FailedPrecondition when it ended otherwise."""
        request = pb.CancelFineTuningJobRequest(job_id=job_id)
        return Job.from_proto((await self._transport.call(self._stub.CancelFineTuningJob, request)).fine_tuning_job)

    async def pause(self, job_id: str) -> Job:
        """Holds a job after a checkpoint. Raises NotFound, and FailedPrecondition when it has ended or is ending."""
        request = pb.PauseFineTuningJobRequest(job_id=job_id)
        return Job.from_proto((await self._transport.call(self._stub.PauseFineTuningJob, request)).fine_tuning_job)

    async def resume(self, job_id: str) -> Job:
        """Goes on from the newest checkpoint. Raises as `pause` does."""
        request = pb.ResumeFineTuningJobRequest(job_id=job_id)
        return Job.from_proto((await self._transport.call(self._stub.ResumeFineTuningJob, request)).fine_tuning_job)

    async def delete(self, job_id: str) -> None:
        """Deletes a job that has ended, its history and its artifacts. Raises NotFound, FailedPrecondition."""
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
        """Yields what happened after `after_sequence`, then what happens, and ends with the job.

        A lost connection is made again, to another gateway where the client knows several, and goes on behind the last
        event: no gap, no repeat. `on_disconnect` hears of each loss, and `on_reconnect` when a gateway speaks again.
        After `give_up_after_seconds` without one ServerUnreachable is raised. `kinds` are payload names (`log`,
        `eval`, ...); default all. Closing the iterator ends the stream. Raises NotFound, OutOfRange beyond the newest
        event.
        """
        return watch(
            self._transport,
            self._stub.WatchFineTuningJob,
            _watch_request(job_id, after_sequence, kinds, min_severity),
            self.get,
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
        """Returns the job once it has SUCCEEDED; a paused one is waited for.

        Raises JobFailed, JobCancelled, NotFound, TimeoutError after `timeout` seconds, and ServerUnreachable after
        `give_up_after_seconds` without a server.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        job = await self.get(job_id)
        if not job.ended:
            events = watch(
                self._transport,
                self._stub.WatchFineTuningJob,
                _watch_request(job_id, job.last_sequence, ("state_changed",), None),
                self.get,
                give_up_after_seconds=give_up_after_seconds,
                deadline=deadline,
            )
            async for _ in events:
                pass
            job = await self.get(job_id)
        if job.state == JobState.FAILED:
            raise JobFailed(job)
        if job.state == JobState.CANCELLED:
            raise JobCancelled(job)
        return job

    async def events(
        self, job_id: str, *, after_sequence: int = 0, kinds: Sequence[str] = ()
    ) -> AsyncGenerator[Event, None]:
        """What has happened so far, oldest first. Raises NotFound."""
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
        """Those that can be resumed from, newest first. Raises NotFound."""
        response = await self._transport.call(self._stub.ListCheckpoints, pb.ListCheckpointsRequest(job_id=job_id))
        return [Checkpoint.from_proto(checkpoint) for checkpoint in response.checkpoints]

    async def metrics(self, job_id: str, *, names: Sequence[str] = (), max_points: int = 0) -> dict[str, MetricSeries]:
        """Whole curves by name (`loss`, `eval_loss`, ...), thinned evenly to `max_points` when given."""
        request = fill(pb.GetMetricsRequest(), job_id=job_id, names=names, max_points=max_points)
        response = await self._transport.call(self._stub.GetMetrics, request)
        return {series.name: MetricSeries.from_proto(series) for series in response.series}

    async def download(
        self, job_id: str, to: str | PathLike[str] = ".", *, progress: FileProgress | None = None
    ) -> builtins.list[Path]:
        """Downloads every file of the export into the folder `to`, made when missing, and returns their paths.

        Each is verified and appears whole or not at all; one that is already there is not fetched again, one that
        was cut goes on. Raises NotFound for an unknown job, FailedPrecondition when it has no export (yet).
        """
        files = [a async for a in self._artifacts.list(job_id) if a.kind in _EXPORT_KINDS and not a.is_folder]
        if not files:
            state = (await self.get(job_id)).state
            raise FailedPrecondition(f"Job {job_id} has no export: it is {state}.", reason="NO_EXPORT")
        folder = Path(to)
        paths = []
        for artifact in files:
            target = folder / safe_relative_path(artifact.name.removeprefix("export/"))
            # A newer attempt's file of the same name comes later in the list and takes the place of the older one.
            on_progress = None if progress is None else _named(progress, target.name)
            path = await self._artifacts.download(artifact, target, progress=on_progress)
            if path not in paths:
                paths.append(path)
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


def _watch_request(
    job_id: str, after_sequence: int, kinds: Sequence[str], min_severity: Severity | str | None
) -> pb.WatchFineTuningJobRequest:
    severity = enum_number(event_pb2.Severity.DESCRIPTOR, min_severity, "min_severity") if min_severity else None
    return fill(
        pb.WatchFineTuningJobRequest(),
        job_id=job_id,
        after_sequence=after_sequence,
        kinds=kinds,
        min_severity=severity,
    )


def _name_files(uploaded: Mapping[Path, str], *specs: FineTuningJobSpec) -> None:
    """In a dry run's answer, the files in place of the datasets that were deleted again."""
    for path, dataset_id in uploaded.items():
        for spec in specs:
            of_phases = [source for phase in spec.phases for source in phase.training_data]
            for source in (*spec.training_data, *spec.evaluation_data, *of_phases):
                if source.dataset == dataset_id:
                    source.dataset = str(path)
            # The server makes a name of model and dataset where nobody gives one.
            spec.display_name = spec.display_name.replace(dataset_id, path.name)


def _draft(spec: FineTuningJobSpec | Mapping[str, Any] | None, single: dict[str, Any]) -> SpecDraft:
    if spec is None:
        return draft_spec(single)
    if single:
        raise InvalidArgument(
            "Give either `spec` or single fields.",
            reason="INVALID_SPEC",
            violations=[Violation(f"spec.{name}", "given beside `spec`") for name in single],
        )
    return SpecDraft(spec) if isinstance(spec, FineTuningJobSpec) else draft_spec(spec)


def _named(progress: FileProgress, name: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(name, done, total)
