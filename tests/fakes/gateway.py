"""A real gRPC server whose servicers answer from a script: what a gateway says, without a gateway."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from finetuneflow.v1 import (
    artifact_pb2,
    artifact_service_pb2,
    artifact_service_pb2_grpc,
    dataset_pb2,
    dataset_service_pb2,
    dataset_service_pb2_grpc,
    estimate_pb2,
    evaluation_pb2,
    evaluation_service_pb2,
    evaluation_service_pb2_grpc,
    evaluator_service_pb2,
    evaluator_service_pb2_grpc,
    event_pb2,
    export_pb2,
    export_service_pb2,
    export_service_pb2_grpc,
    fine_tuning_job_pb2,
    fine_tuning_service_pb2,
    fine_tuning_service_pb2_grpc,
    hardware_pb2,
    integration_pb2,
    integration_service_pb2,
    integration_service_pb2_grpc,
    model_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    probe_service_pb2,
    probe_service_pb2_grpc,
    recipe_pb2,
    recipe_service_pb2,
    recipe_service_pb2_grpc,
    stage_result_pb2,
    validation_pb2,
    work_pb2,
)

JOB = "ftjob_01jd0000000000000000000000"


def refuse(
    context: grpc.ServicerContext,
    code: grpc.StatusCode,
    message: str,
    reason: str,
    violations: Sequence[tuple[str, str]] = (),
) -> None:
    """Ends a call as the contract says: ErrorInfo always, BadRequest with one violation per field."""
    status = status_pb2.Status(code=getattr(code_pb2, code.name), message=message)
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=reason, domain="finetuneflow", metadata={"near": "x"})]
    if violations:
        fields = [error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in violations]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)


def history(*, failed: bool = False, steps: int = 20) -> list[event_pb2.Event]:
    """The events of a short job, dense from 1."""
    pb, job_pb = event_pb2, fine_tuning_job_pb2
    preflight, training = job_pb.STAGE_PREFLIGHT, job_pb.STAGE_TRAINING
    events = [
        pb.Event(stage=preflight, state_changed=pb.StateChanged(state=job_pb.JOB_STATE_VALIDATING, stage=preflight)),
        pb.Event(stage=preflight, phase=pb.Phase(name="counting_tokens", index=2, count=4, fraction=0.5)),
        pb.Event(stage=preflight, warning=pb.Warning(reason="SHORT", message="only 12 rows")),
        pb.Event(stage=preflight, stage_completed=pb.StageCompleted()),
        pb.Event(
            stage=training,
            state_changed=pb.StateChanged(state=job_pb.JOB_STATE_RUNNING, stage=training, node_id="trainer-1"),
        ),
    ]
    for step in range(1, steps + 1):
        log = pb.Log(step=step, total_steps=steps, loss=4 - step / 10, learning_rate=2e-4, tokens_per_second=300)
        events.append(pb.Event(stage=training, log=log))
    events.append(
        pb.Event(stage=training, eval=pb.Eval(step=steps, total_steps=steps, eval_loss=3.0, perplexity=20, best=True))
    )
    end = job_pb.JOB_STATE_SUCCEEDED
    if failed:
        end = job_pb.JOB_STATE_FAILED
        failure = pb.StageFailed(
            fault=job_pb.FAULT_USER_ERROR,
            reason="BAD_DATA",
            message="row 17 has no answer",
            advice="correct row 17",
            last_lines=["ValueError: no answer"],
        )
        events.append(pb.Event(stage=training, stage_failed=failure))
    events.append(pb.Event(stage=training, state_changed=pb.StateChanged(state=end, stage=training)))
    for sequence, event in enumerate(events, 1):
        event.job_id, event.sequence, event.attempt, event.source = JOB, sequence, 1, "trainer-1"
        event.severity = pb.SEVERITY_WARNING if event.HasField("warning") else pb.SEVERITY_INFO
    return events


@dataclass
class FakeGateway(
    fine_tuning_service_pb2_grpc.FineTuningServiceServicer,
    dataset_service_pb2_grpc.DatasetServiceServicer,
    artifact_service_pb2_grpc.ArtifactServiceServicer,
    evaluation_service_pb2_grpc.EvaluationServiceServicer,
    evaluator_service_pb2_grpc.EvaluatorServiceServicer,
    export_service_pb2_grpc.ExportServiceServicer,
    integration_service_pb2_grpc.IntegrationServiceServicer,
    model_service_pb2_grpc.ModelServiceServicer,
    recipe_service_pb2_grpc.RecipeServiceServicer,
    probe_service_pb2_grpc.ProbeServiceServicer,
):
    """`events` is the one job's history; the other fields say where it misbehaves."""

    events: list[event_pb2.Event] = field(default_factory=history)
    jobs: int = 1
    nodes: list[str] = field(default_factory=list)
    harness_tasks: list[str] = field(default_factory=list)
    harness: stage_result_pb2.HarnessResult | None = None
    attempts: list[fine_tuning_job_pb2.AttemptSummary] = field(default_factory=list)
    # Watching: events sent before the connection is cut, one entry per connection; then all of them.
    cut_watch_after: list[int] = field(default_factory=list)
    # Watching: what a faulty server answers, one entry per connection.
    scripts: list[list[fine_tuning_service_pb2.WatchFineTuningJobResponse]] = field(default_factory=list)
    # Watching: streams stay open behind the last event until this is set.
    hold: threading.Event | None = None
    watching: int = 0
    # Answers UNAVAILABLE, as a dying server does, to so many calls of a method.
    outages: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, Callable[[grpc.ServicerContext], None]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    cut_download_after: list[int] = field(default_factory=list)
    corrupt_downloads: int = 0
    calls: list[tuple[str, Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    # Bytes of uploads by request_id, complete or not; and after how many of them a stream is cut, one entry per stream.
    held: dict[str, bytes] = field(default_factory=lambda: defaultdict(bytes))
    cut_upload_after: list[int] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    # What the job's model has lost, as its evaluation shows.
    shown_regression: str = ""
    failed_export: export_pb2.Export | None = None
    """What GetExport returns instead of one that has SUCCEEDED."""
    integrations: list[integration_pb2.Integration] = field(default_factory=list)
    # Number of tries of each integration.
    delivery_attempts: int = 0
    # Generating: words after which the answer is lost.
    cut_answer_after: int = -1
    # Generating: an answer with this word stays open behind it until the caller leaves.
    silent_after: str = ""
    silences: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    # Generating: a prompt with this word is refused as too long.
    too_long: str = ""

    def __post_init__(self) -> None:
        self.lock = threading.Lock()

    def _enter(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        with self.lock:
            self.calls.append((method, request))
            self.tokens += [str(value) for key, value in context.invocation_metadata() if key == "authorization"]
            if self.outages.get(method, 0) > 0:
                self.outages[method] -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        if method in self.refusals:
            self.refusals[method](context)

    def requests(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]

    @property
    def job(self) -> fine_tuning_job_pb2.FineTuningJob:
        last = next(e for e in reversed(self.events) if e.HasField("state_changed")).state_changed
        job = fine_tuning_job_pb2.FineTuningJob(
            id=JOB, state=last.state, stage=last.stage, last_sequence=len(self.events), attempt=1
        )
        job.spec.base_model, job.spec.method = "smollm2-135m", 2
        job.create_time.FromSeconds(1_700_000_000)
        job.progress.step, job.progress.total_steps, job.progress.loss = 20, 20, 2.0
        if last.state == fine_tuning_job_pb2.JOB_STATE_SUCCEEDED:
            job.reason, job.tuned_model = "COMPLETED", f"ft:{JOB}"
            job.evaluation_id, job.export_id = "ev_1", "ex_1"
            job.gate_decision = stage_result_pb2.GATE_DECISION_PROMOTE
            job.shown_regression = self.shown_regression
        if last.state == fine_tuning_job_pb2.JOB_STATE_FAILED:
            job.fault, job.reason = fine_tuning_job_pb2.FAULT_USER_ERROR, "BAD_DATA"
            job.message, job.advice = "row 17 has no answer", "correct row 17"
            if last.reason:
                job.fault, job.reason, job.message, job.advice = last.fault, last.reason, last.message, last.advice
        return job

    # FineTuningService

    def CreateFineTuningJob(self, request: Any, context: Any) -> Any:
        self._enter("CreateFineTuningJob", request, context)
        job = fine_tuning_job_pb2.FineTuningJob(
            id="" if request.validate_only else JOB, spec=request.spec, state=1, stage=1
        )
        return fine_tuning_service_pb2.CreateFineTuningJobResponse(fine_tuning_job=job)

    def GetFineTuningJob(self, request: Any, context: Any) -> Any:
        self._enter("GetFineTuningJob", request, context)
        if request.job_id != JOB:
            refuse(context, grpc.StatusCode.NOT_FOUND, f"no job {request.job_id}", "JOB_NOT_FOUND")
        job = self.job
        job.attempts.extend(self.attempts)
        job.integrations.extend(self.integrations)
        return fine_tuning_service_pb2.GetFineTuningJobResponse(fine_tuning_job=job)

    def ListFineTuningJobs(self, request: Any, context: Any) -> Any:
        self._enter("ListFineTuningJobs", request, context)
        first = int(request.page_token or 0)
        last = min(first + request.page_size, self.jobs)
        jobs = [self.job for _ in range(first, last)]
        for number, job in enumerate(jobs, first):
            job.id = f"ftjob_{number}"
        token = str(last) if last < self.jobs else ""
        return fine_tuning_service_pb2.ListFineTuningJobsResponse(fine_tuning_jobs=jobs, next_page_token=token)

    def CancelFineTuningJob(self, request: Any, context: Any) -> Any:
        self._enter("CancelFineTuningJob", request, context)
        job = self.job
        job.state = fine_tuning_job_pb2.JOB_STATE_CANCELLING
        return fine_tuning_service_pb2.CancelFineTuningJobResponse(fine_tuning_job=job)

    def WatchFineTuningJob(self, request: Any, context: Any) -> Iterator[Any]:
        self._enter("WatchFineTuningJob", request, context)
        if request.job_id != JOB:
            refuse(context, grpc.StatusCode.NOT_FOUND, f"no job {request.job_id}", "JOB_NOT_FOUND")
        if self.scripts:
            yield from self.scripts.pop(0)
            return
        cut = self.cut_watch_after.pop(0) if self.cut_watch_after else None
        pending = [event for event in self.events if event.sequence > request.after_sequence]
        batches = [pending[i : i + 3] for i in range(0, len(pending), 3)]
        sent = 0
        for batch in batches:
            if cut is not None and sent + len(batch) > cut:
                # Part of a batch arrives; its cursor is the last event of that part.
                batch = batch[: cut - sent]
            shown = [e for e in batch if not request.kinds or e.WhichOneof("payload") in request.kinds]
            through = batch[-1].sequence if batch else request.after_sequence
            yield fine_tuning_service_pb2.WatchFineTuningJobResponse(events=shown, through_sequence=through)
            sent += len(batch)
            if cut is not None and sent >= cut:
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        if self.hold is not None:
            self._until_released(self.hold, context)

    def _until_released(self, hold: threading.Event, context: Any) -> None:
        over = threading.Event()
        context.add_callback(over.set)
        with self.lock:
            self.watching += 1
        while not hold.is_set() and not over.wait(0.01):
            pass
        with self.lock:
            self.watching -= 1

    def ListFineTuningJobEvents(self, request: Any, context: Any) -> Any:
        self._enter("ListFineTuningJobEvents", request, context)
        page = [e for e in self.events if e.sequence > request.after_sequence][:7]
        shown = [e for e in page if not request.kinds or e.WhichOneof("payload") in request.kinds]
        through = page[-1].sequence if page else request.after_sequence
        return fine_tuning_service_pb2.ListFineTuningJobEventsResponse(events=shown, through_sequence=through)

    def GetMetrics(self, request: Any, context: Any) -> Any:
        self._enter("GetMetrics", request, context)
        points = [work_pb2.MetricPoint(step=s, value=4 - s / 10) for s in range(1, 6)]
        return fine_tuning_service_pb2.GetMetricsResponse(series=[work_pb2.MetricSeries(name="loss", points=points)])

    # DatasetService

    def UploadDataset(self, request_iterator: Any, context: Any) -> Any:
        header = next(request_iterator).header
        self._enter("UploadDataset", header, context)
        held = self.held[header.request_id][: header.offset]
        assert len(held) == header.offset
        cut = self.cut_upload_after.pop(0) if self.cut_upload_after else None
        sha256 = ""
        for message in request_iterator:
            held, sha256 = held + message.chunk, message.sha256
            self.held[header.request_id] = held
            if cut is not None and len(held) >= header.offset + cut:
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        assert len(held) == header.size_bytes
        assert header.sha256_follows
        if hashlib.sha256(held).hexdigest() != sha256:
            del self.held[header.request_id]
            refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "other bytes", "SHA256_MISMATCH")
        dataset = self._dataset(header.request_id, held, header.filename)
        self.uploads[dataset.id] = held
        return dataset_service_pb2.UploadDatasetResponse(dataset=dataset)

    def GetUpload(self, request: Any, context: Any) -> Any:
        self._enter("GetUpload", request, context)
        held = self.held[request.request_id]
        answer = dataset_service_pb2.GetUploadResponse(received_bytes=len(held))
        dataset = self._dataset(request.request_id, held, "train.jsonl")
        if dataset.id in self.uploads:
            answer.dataset.CopyFrom(dataset)
        return answer

    def _dataset(self, request_id: str, content: bytes, filename: str) -> dataset_pb2.Dataset:
        return dataset_pb2.Dataset(
            id=f"ds_{hashlib.sha256(request_id.encode()).hexdigest()[:26]}",
            filename=filename,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )

    def ListDatasets(self, request: Any, context: Any) -> Any:
        self._enter("ListDatasets", request, context)
        datasets = [dataset_pb2.Dataset(id=id, filename="train.jsonl", size_bytes=1536) for id in self.uploads]
        return dataset_service_pb2.ListDatasetsResponse(datasets=datasets)

    def DeleteDataset(self, request: Any, context: Any) -> Any:
        self._enter("DeleteDataset", request, context)
        self.deleted.append(request.dataset_id)
        return dataset_service_pb2.DeleteDatasetResponse()

    # ArtifactService

    def _artifacts(self) -> list[artifact_pb2.Artifact]:
        return [
            artifact_pb2.Artifact(
                id=f"ar_{number}",
                job_id=JOB,
                name=name,
                kind="export_file" if name.startswith("export/") else "checkpoint",
                sha256=hashlib.sha256(content).hexdigest(),
                size_bytes=len(content),
                media_type="application/octet-stream",
            )
            for number, (name, content) in enumerate(self.files.items())
        ]

    def ListArtifacts(self, request: Any, context: Any) -> Any:
        self._enter("ListArtifacts", request, context)
        return artifact_service_pb2.ListArtifactsResponse(artifacts=self._artifacts())

    def DownloadArtifact(self, request: Any, context: Any) -> Iterator[Any]:
        self._enter("DownloadArtifact", request, context)
        artifact = self._artifacts()[int(request.artifact_id.removeprefix("ar_"))]
        content = self.files[artifact.name]
        if request.offset > len(content):
            refuse(context, grpc.StatusCode.OUT_OF_RANGE, "beyond the end", "OFFSET_BEYOND_END")
        if self.corrupt_downloads:
            self.corrupt_downloads -= 1
            content = bytes(len(content))
        cut = self.cut_download_after.pop(0) if self.cut_download_after else None
        yield artifact_service_pb2.DownloadArtifactResponse(artifact=artifact)
        end = len(content) if cut is None else min(len(content), request.offset + cut)
        for start in range(request.offset, end, 1000):
            yield artifact_service_pb2.DownloadArtifactResponse(chunk=content[start : min(start + 1000, end)])
        if cut is not None and end < len(content):
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    # The others

    def GetEvaluation(self, request: Any, context: Any) -> Any:
        self._enter("GetEvaluation", request, context)
        result = stage_result_pb2.EvaluationResult(
            base_loss=4.0, tuned_loss=3.0, num_examples=12, shown_regression=self.shown_regression, harness=self.harness
        )
        evaluation = evaluation_pb2.Evaluation(id="ev_1", job_id=JOB, result=result)
        return evaluation_service_pb2.GetEvaluationResponse(evaluation=evaluation)

    def CreateEvaluation(self, request: Any, context: Any) -> Any:
        self._enter("CreateEvaluation", request, context)
        return evaluation_service_pb2.CreateEvaluationResponse(evaluation=evaluation_pb2.Evaluation(id="ev_2"))

    def GetExport(self, request: Any, context: Any) -> Any:
        self._enter("GetExport", request, context)
        result = stage_result_pb2.ExportResult(package_path="jobs/x/export.zip", package_size_bytes=2048)
        export = self.failed_export or export_pb2.Export(id="ex_1", job_id=JOB, formats=[1], result=result)
        return export_service_pb2.GetExportResponse(export=export)

    def ListExportEvents(self, request: Any, context: Any) -> Any:
        """Lists a failed attempt once."""
        self._enter("ListExportEvents", request, context)
        failure = event_pb2.StageFailed(reason="CRASHED", message="exited with status 3", last_lines=["KeyError: 'x'"])
        events = (
            [] if request.after_sequence else [event_pb2.Event(sequence=7, attempt=1, stage=4, stage_failed=failure)]
        )
        return export_service_pb2.ListExportEventsResponse(events=events, through_sequence=7)

    def Generate(self, request: Any, context: Any) -> Iterator[Any]:
        """Repeats the last thing that was said, word by word."""
        self._enter("Generate", request, context)
        Response = evaluator_service_pb2.GenerateResponse
        yield Response(phase="loading_model")
        words = (request.messages[-1].content if request.messages else request.prompt).split()
        if self.too_long in words:
            said = "The rendered prompt has 600 tokens; the context of m has 512."
            refuse(context, grpc.StatusCode.INVALID_ARGUMENT, said, "PROMPT_TOO_LONG", [("prompt", said)])
        for number, word in enumerate(words):
            if number == self.cut_answer_after:
                refuse(context, grpc.StatusCode.UNAVAILABLE, "the process is gone", "GENERATION_LOST")
            yield Response(text=f"{word} ")
            if word == self.silent_after:
                left = threading.Event()
                if context.add_callback(left.set):
                    self.silences.release()
                    left.wait()
        usage = evaluator_service_pb2.GenerationUsage(prompt_tokens=3, completion_tokens=len(words))
        yield Response(finish_reason="stop", usage=usage)

    def ListModels(self, request: Any, context: Any) -> Any:
        self._enter("ListModels", request, context)
        model = model_pb2.Model(id="smollm2-135m", kind=1, num_parameters=134_515_008, license="Apache-2.0")
        return model_service_pb2.ListModelsResponse(models=[model])

    def _recipe(self) -> recipe_pb2.Recipe:
        recipe = recipe_pb2.Recipe(name="cpu-demo", description="small and quick")
        recipe.spec.lora.r, recipe.spec.hyperparameters.learning_rate = 16, 5e-4
        return recipe

    def GetRecipe(self, request: Any, context: Any) -> Any:
        self._enter("GetRecipe", request, context)
        return recipe_service_pb2.GetRecipeResponse(recipe=self._recipe())

    def ListRecipes(self, request: Any, context: Any) -> Any:
        self._enter("ListRecipes", request, context)
        return recipe_service_pb2.ListRecipesResponse(recipes=[self._recipe()])

    def RecommendMethod(self, request: Any, context: Any) -> Any:
        self._enter("RecommendMethod", request, context)
        answer = probe_service_pb2.RecommendMethodResponse()
        if request.base_model:
            found = answer.recommendation
            found.base_model, found.method, found.verdict = request.base_model, 3, 2
            found.reason = "QLoRA takes up to 7.5 GiB of 8.0 GiB free."
            found.adjustments.hyperparameters.max_length = 1024
            found.changes.add(field="hyperparameters.max_length", before="2048", after="1024")
            found.warnings.append("Rows longer than 1,024 tokens are cut.")
            found.estimate.CopyFrom(self._estimate())
            found.seed.method, found.seed.reason, found.seed.estimated_vram_usage_gb = 2, "By size.", 8.3
        if request.matrix:
            answer.matrix.cells.add(
                band="8-12", size="7-8B", base_model="llama-3.1-8b", seed_method=3, verdict=3, seed_verdict=2,
                difference="QLoRA needs 11.1 GiB free; 8 are.",
            )  # fmt: skip
            answer.matrix.cells.add(band="24-48", size="7-8B", base_model="llama-3.1-8b", method=3, verdict=1)
        return answer

    def EstimateResources(self, request: Any, context: Any) -> Any:
        self._enter("EstimateResources", request, context)
        estimate = self._estimate()
        if request.HasField("num_examples"):
            estimate.num_tokens, estimate.duration_seconds = 1000, 3600
            estimate.duration_low_seconds, estimate.duration_high_seconds = 1800, 7200
            estimate.price_per_hour = estimate.cost = 0.3
        return probe_service_pb2.EstimateResourcesResponse(estimate=estimate)

    def PreflightFineTuningJob(self, request: Any, context: Any) -> Any:
        """Refuses jobs for more than 99 epochs."""
        self._enter("PreflightFineTuningJob", request, context)
        answer = probe_service_pb2.PreflightFineTuningJobResponse(resolved_spec=request.spec)
        answer.resolved_spec.display_name = f"m on {request.spec.training_data[0].dataset}"
        answer.resolutions.add(field="method", value="lora", reason="it fits")
        answer.result.base_model.id, answer.result.total_steps = request.spec.base_model, 43
        answer.estimate.CopyFrom(self._estimate())
        answer.estimate.disk.needed_bytes, answer.estimate.disk.free_bytes = 2**30, 2**33
        answer.estimate.disk.download_bytes = 2**29
        report = answer.report
        report.verdict = report.validation.verdict = 2
        report.validation.training_data.num_examples = 12_345
        report.validation.problems.add(row=17, reason="TRUNCATED", message="is cut", severity=1)
        report.improvements.add(
            field="hyperparameters.packing", current="false", suggested="true", reason="40% is padding."
        )
        if request.spec.hyperparameters.num_epochs > 99:
            report.verdict = 3
            refusal = report.findings.add(
                severity=2, reason="DISK_TOO_SMALL", message="It is too small.", advice="Grow."
            )
            refusal.violations.add(field="spec.hyperparameters.save_total_limit", description="It is too small.")
        return answer

    def _estimate(self) -> estimate_pb2.ResourceEstimate:
        return estimate_pb2.ResourceEstimate(
            memory=[estimate_pb2.MemoryComponent(name="weights", size_bytes=6 * 2**30, description="NF4")],
            memory_total_bytes=7 * 2**30,
            memory_upper_bytes=2**33 - 2**29,
            memory_free_bytes=2**33,
            verdict=2,
            method=3,
            hardware="H200",
            moment="backward",
            tokens_per_second=900.0,
            speed_basis="measured in 1 earlier training on H200",
            currency="USD",
        )

    def ValidateDataset(self, request: Any, context: Any) -> Any:
        self._enter("ValidateDataset", request, context)
        counted = stage_result_pb2.DataStatistics(num_examples=12_345, num_tokens=10, format="chat")
        report = validation_pb2.ValidationReport(verdict=3, num_problems=1, training_data=counted)
        report.problems.add(row=17, reason="NO_ANSWER", message="has no answer", severity=2)
        return dataset_service_pb2.ValidateDatasetResponse(report=report)

    def GetHardware(self, request: Any, context: Any) -> Any:
        self._enter("GetHardware", request, context)
        gpu = hardware_pb2.Gpu(index=0, name="H200", memory_total_bytes=2**37, temperature_celsius=40)
        machine = hardware_pb2.Hardware(node_id="probe-one-0a1b", cpu_model="Zen", cpu_cores=2, gpus=[gpu])
        machine.harness_tasks[:] = self.harness_tasks
        fleet = [machine]
        for node in self.nodes:
            fleet.append(hardware_pb2.Hardware())
            fleet[-1].CopyFrom(machine)
            fleet[-1].node_id = node
        return probe_service_pb2.GetHardwareResponse(hardware=fleet)

    # IntegrationService

    def CreateIntegration(self, request: Any, context: Any) -> Any:
        self._enter("CreateIntegration", request, context)
        made = integration_pb2.Integration(
            id=f"int_{len(self.integrations) + 1}",
            job_id=request.job_id,
            spec=request.spec,
            kind=request.spec.WhichOneof("service"),
            state=integration_pb2.INTEGRATION_STATE_PENDING,
        )
        self.integrations.append(made)
        return integration_service_pb2.CreateIntegrationResponse(integration=made)

    def ListIntegrations(self, request: Any, context: Any) -> Any:
        self._enter("ListIntegrations", request, context)
        return integration_service_pb2.ListIntegrationsResponse(integrations=self.integrations)

    def RetryIntegration(self, request: Any, context: Any) -> Any:
        self._enter("RetryIntegration", request, context)
        found = self._integration(request.integration_id, context)
        if found.state == integration_pb2.INTEGRATION_STATE_FAILED:
            found.state = integration_pb2.INTEGRATION_STATE_RETRYING
        return integration_service_pb2.RetryIntegrationResponse(integration=found)

    def DeleteIntegration(self, request: Any, context: Any) -> Any:
        self._enter("DeleteIntegration", request, context)
        self.integrations.remove(self._integration(request.integration_id, context))
        return integration_service_pb2.DeleteIntegrationResponse()

    def ListDeliveryAttempts(self, request: Any, context: Any) -> Any:
        self._enter("ListDeliveryAttempts", request, context)
        self._integration(request.integration_id, context)
        tries = [
            integration_pb2.DeliveryAttempt(
                number=number, first_sequence=number, last_sequence=number, http_status=200, duration_seconds=0.5
            )
            for number in range(self.delivery_attempts, 0, -1)
        ]
        tries[0].error, tries[0].http_status, tries[0].last_sequence = "the receiver answered 500", 500, 102
        return integration_service_pb2.ListDeliveryAttemptsResponse(attempts=tries)

    def _integration(self, integration_id: str, context: Any) -> Any:
        for each in self.integrations:
            if each.id == integration_id:
                return each
        return refuse(context, grpc.StatusCode.NOT_FOUND, f"no integration {integration_id}", "INTEGRATION_NOT_FOUND")


class Running:
    """The gateway on a port of its own, which can be stopped and started again."""

    def __init__(self, gateway: FakeGateway) -> None:
        self.gateway = gateway
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._server: grpc.Server | None = None

    def start(self) -> None:
        # Like the gateway, it does not treat pings as abuse.
        server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.http2.max_ping_strikes", 0)])
        for add in (
            fine_tuning_service_pb2_grpc.add_FineTuningServiceServicer_to_server,
            dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server,
            artifact_service_pb2_grpc.add_ArtifactServiceServicer_to_server,
            evaluation_service_pb2_grpc.add_EvaluationServiceServicer_to_server,
            evaluator_service_pb2_grpc.add_EvaluatorServiceServicer_to_server,
            export_service_pb2_grpc.add_ExportServiceServicer_to_server,
            integration_service_pb2_grpc.add_IntegrationServiceServicer_to_server,
            model_service_pb2_grpc.add_ModelServiceServicer_to_server,
            recipe_service_pb2_grpc.add_RecipeServiceServicer_to_server,
            probe_service_pb2_grpc.add_ProbeServiceServicer_to_server,
        ):
            add(self.gateway, server)
        server.add_insecure_port(self.address)
        server.start()
        self._server = server

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None
