"""Transitions of jobs, attempts and claims."""

import asyncio
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.message import Message
from sqlmodel import select

from chassis.errors import FailedPrecondition
from chassis.store.artifact_store import ArtifactStore
from engine.config.micro_batch import halved
from finetuneflow.v1.event_pb2 import (
    ArtifactSaved,
    CheckpointPruned,
    CheckpointSaved,
    ConfigResolved,
    Eval,
    Log,
    StageCompleted,
    StageFailed,
    StageReleased,
    StateChanged,
)
from finetuneflow.v1.fine_tuning_job_pb2 import Fault
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec, Hyperparameters
from finetuneflow.v1.fine_tuning_service_pb2 import GetFineTuningJobRequest
from finetuneflow.v1.stage_result_pb2 import PreflightResult, TrainingResult
from finetuneflow.v1.work_pb2 import Directive, ReportRequest
from gateway import views
from gateway.metrics import read_series
from gateway.servicers.fine_tuning import FineTuning
from gateway.servicers.work import WorkMethods
from gateway.sql.tables import Attempt, SavedArtifact, SavedCheckpoint
from gateway.work import lifecycle
from gateway.work.kinds import FINE_TUNING_JOB
from gateway.work.ledger import Decision, Ledger
from gateway.work.worker_requests import WorkerRequests
from tests.fakes.planning import NoTrainers
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import Worker, attempts_of, create, events_of, job_of, log_at

STAGES = ["STAGE_PREFLIGHT", "STAGE_TRAINING", "STAGE_EVALUATION", "STAGE_EXPORT"]


async def claim_latest_attempt(acceptance: WorkerRequests, recorder: Recorder, name: str = "a") -> Worker:
    """Returns a worker that has claimed the attempt that was offered last."""
    worker = Worker(acceptance, name * 32)
    assert (await worker.claim(recorder.offered[-1])).HasField("assignment")
    return worker


async def create_job_in_training(
    ledger: Ledger,
    acceptance: WorkerRequests,
    recorder: Recorder,
    resolved: Hyperparameters | None = None,
    **fields: object,
) -> tuple[str, Worker]:
    """Creates a job whose training is claimed."""
    job_id = await create(ledger, **fields)
    preflight = await claim_latest_attempt(acceptance, recorder)
    if resolved is not None:
        await preflight.report(ConfigResolved(resolved_spec=FineTuningJobSpec(hyperparameters=resolved)))
    await preflight.complete()
    return job_id, await claim_latest_attempt(acceptance, recorder, "b")


async def test_a_job_passes_through_its_four_stages(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    job_id = await create(ledger)
    for stage in STAGES:
        assert recorder.offered[-1].stage == stage
        await (await claim_latest_attempt(acceptance, recorder)).complete()
    job = await job_of(ledger, job_id)
    assert (job.state, job.reason) == ("JOB_STATE_SUCCEEDED", "COMPLETED")
    events = await events_of(ledger, job_id)
    assert [event.sequence for event in events] == list(range(1, job.last_sequence + 1))
    assert [frame.sequence for frame in recorder.frames] == list(range(1, job.last_sequence + 1))
    assert recorder.frames[-1].terminal
    assert not any(frame.terminal for frame in recorder.frames[:-1])


async def test_attempt_is_granted_to_one_claim_only(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    await create(ledger)
    first, second = Worker(acceptance, "a" * 32), Worker(acceptance, "b" * 32)
    granted = await first.claim(recorder.offered[0])
    assert granted.assignment.claim_id == "a" * 32
    assert (await second.claim(recorder.offered[0])).refused.reason == "CLAIMED_BY_ANOTHER"
    again = await first.claim(recorder.offered[0])
    assert again == granted, "a repeated claim must get the same response"


async def test_one_of_concurrent_claims_is_granted(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    await create(ledger)
    workers = [Worker(acceptance, f"{number:032x}") for number in range(8)]
    answers = await asyncio.gather(*(worker.claim(recorder.offered[0]) for worker in workers))
    assert sum(answer.HasField("assignment") for answer in answers) == 1


async def test_repeated_report_is_accepted_once(ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder) -> None:
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder)
    await worker.report(log_at(1), log_at(2), log_at(3))
    repeated = await worker.report(log_at(2), log_at(3), log_at(4), first=1)
    assert repeated.next_ordinal == 4
    steps = [event.log.step for event in await events_of(ledger, job_id) if event.HasField("log")]
    assert steps == [1, 2, 3, 4]


async def test_report_with_missing_ordinals_is_rejected_and_rewinds_worker(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder)
    before = await job_of(ledger, job_id)
    answer = await worker.report(log_at(9), first=5)
    assert (answer.next_ordinal, answer.directive) == (0, Directive.DIRECTIVE_RUN)
    assert (await job_of(ledger, job_id)).last_sequence == before.last_sequence


async def test_a_worker_without_the_current_claim_is_stopped(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder)
    attempt = (await attempts_of(ledger, job_id))[-1]
    await acceptance.expire(job_id, "b" * 32, attempt.beat)
    before = await job_of(ledger, job_id)
    assert (before.state, before.reason, before.attempt) == ("JOB_STATE_QUEUED", "RETRYING", 2)
    zombie = await worker.report(log_at(7))
    assert zombie.directive == Directive.DIRECTIVE_STOP
    assert (await job_of(ledger, job_id)).last_sequence == before.last_sequence, (
        "an event of an expired claim was accepted"
    )


async def test_lease_does_not_expire_after_newer_report(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder)
    beat = (await attempts_of(ledger, job_id))[-1].beat
    await worker.report()
    await acceptance.expire(job_id, worker.claim_id, beat)
    assert (await job_of(ledger, job_id)).state == "JOB_STATE_RUNNING"


async def test_a_system_failure_is_retried_until_max_attempts(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder, max_attempts=2)
    await worker.fail("KILLED")
    job = await job_of(ledger, job_id)
    assert (job.state, job.stage, job.attempt, job.failed_attempts) == ("JOB_STATE_QUEUED", "STAGE_TRAINING", 2, 1)
    await (await claim_latest_attempt(acceptance, recorder, "c")).fail("UPLOAD_FAILED")
    job = await job_of(ledger, job_id)
    assert (job.state, job.reason, job.fault) == ("JOB_STATE_FAILED", "UPLOAD_FAILED", "FAULT_SYSTEM_ERROR")
    assert job.advice == "correct it"
    assert "given up after 2 failures" in job.message


async def test_failure_after_the_training_says_how_the_trained_model_is_exported(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    """A failed job looks like one whose training is lost, and is trained again."""
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder)
    await worker.complete()
    await (await claim_latest_attempt(acceptance, recorder, "c")).complete()
    await (await claim_latest_attempt(acceptance, recorder, "d")).fail("GGUF_UNSUPPORTED", "FAULT_USER_ERROR")
    job = await job_of(ledger, job_id)
    assert (job.state, job.stage, job.reason) == ("JOB_STATE_FAILED", "STAGE_EXPORT", "GGUF_UNSUPPORTED")
    assert job.advice.startswith("correct it The model is trained")
    assert f"`ftf export {job_id} --format adapter --format merged`" in job.advice


async def test_outage_of_a_minute_does_not_end_a_job(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    """Three attempts within two seconds would all meet it."""
    job_id = await create(ledger, max_attempts=3)
    worker = await claim_latest_attempt(acceptance, recorder, "a")
    await worker.fail("HUB_UNREACHABLE", "FAULT_SYSTEM_ERROR")
    attempt = (await attempts_of(ledger, job_id))[-1]
    assert attempt.not_before - attempt.create_time == pytest.approx(30e6, abs=1e6)


async def test_job_that_kills_every_worker_fails_as_poison(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    """Otherwise it would keep taking workers from other jobs without its owner's knowledge."""
    job_id = await create(ledger, max_attempts=3)
    waits = []
    for name in "abc":
        waits.append(max(recorder.offered[-1].not_before - recorder.offered[-1].create_time, 0))
        worker = await claim_latest_attempt(acceptance, recorder, name)
        attempt = (await attempts_of(ledger, job_id))[-1]
        await acceptance.expire(job_id, worker.claim_id, attempt.beat)
    job = await job_of(ledger, job_id)
    assert (job.state, job.reason, job.fault) == ("JOB_STATE_FAILED", "POISON", "FAULT_SYSTEM_ERROR")
    assert "3 attempts failed" in job.message
    assert "LEASE_EXPIRED" in job.message
    assert "attempts" in job.advice
    ended = [(each.attempt, each.reason, each.counted) for each in await attempts_of(ledger, job_id)]
    assert ended == [(number, "LEASE_EXPIRED", True) for number in (1, 2, 3)]
    assert waits[:2] == [0, 0]
    assert waits[2] > 0, "retries must be delayed"


async def test_single_worker_loss_on_last_attempt_keeps_its_own_reason(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    job_id = await create(ledger, max_attempts=1)
    await (await claim_latest_attempt(acceptance, recorder)).fail("KILLED")
    job = await job_of(ledger, job_id)
    assert (job.state, job.reason, job.message) == ("JOB_STATE_FAILED", "KILLED", "it broke")


async def test_worker_lost_while_pausing_ends_in_paused(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    """Otherwise a paused job of many days would be FAILED although it can resume from its checkpoint."""
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder, max_attempts=1)
    async with ledger.decide(job_id) as decision:
        lifecycle.pause(decision)
    await worker.fail("KILLED")
    job = await job_of(ledger, job_id)
    assert (job.state, job.reason, job.failed_attempts) == ("JOB_STATE_PAUSED", "KILLED", 0)


async def test_a_user_error_is_never_retried(ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder) -> None:
    job_id = await create(ledger)
    await (await claim_latest_attempt(acceptance, recorder)).fail("BAD_DATA", "FAULT_USER_ERROR")
    job = await job_of(ledger, job_id)
    assert (job.state, job.fault, job.failed_attempts) == ("JOB_STATE_FAILED", "FAULT_USER_ERROR", 1)


async def test_events_keep_their_order_when_clock_is_set_back(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder, tmp_path: Path
) -> None:
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder)
    await worker.fail("KILLED")
    async with ledger.database.write() as session:
        first = await session.get(Attempt, (job_id, "STAGE_PREFLIGHT", 1))
        assert first is not None
        first.create_time += 3_600_000_000
    service = FineTuning(WorkMethods(FINE_TUNING_JOB, ledger, None, ArtifactStore(tmp_path.as_uri())), None, None)  # type: ignore[arg-type]
    answer = await service.GetFineTuningJob(GetFineTuningJobRequest(job_id=job_id), None)  # type: ignore[arg-type]
    assert [(each.stage, each.attempt) for each in answer.fine_tuning_job.attempts] == [(1, 1), (2, 1), (2, 2)]


@pytest.mark.parametrize(
    ("micro", "accumulation", "after"),
    [
        (8, 4, (4, 8)),
        (7, 1, (1, 7)),
        (6, 1, (3, 2)),
        (7, 2, (2, 7)),
        (9, 4, (4, 9)),
        (2, 512, (1, 1024)),
        (2, 1024, None),
        (3, 1024, None),
        (1, 1, None),
    ],
)
def test_halved_micro_batch_keeps_rows_per_step(micro: int, accumulation: int, after: tuple[int, int] | None) -> None:
    """With a different number of rows per step the chosen learning rate no longer fits."""
    assert halved(micro, accumulation) == after


async def test_out_of_memory_halves_micro_batch_and_fails_with_advice_at_one_row(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    hyper = Hyperparameters(
        per_device_train_batch_size=4, per_device_eval_batch_size=2, gradient_accumulation_steps=3, save_total_limit=3
    )
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder, hyper, max_attempts=3)
    seen = []
    for name in "cde":
        given = worker.assignment.resolved_spec.hyperparameters
        seen.append((given.per_device_train_batch_size, given.gradient_accumulation_steps))
        await worker.report(
            StageFailed(reason="CUDA_OUT_OF_MEMORY", fault=Fault.FAULT_SYSTEM_ERROR, message="no", advice="halve it")
        )
        if (await job_of(ledger, job_id)).state == "JOB_STATE_FAILED":
            break
        worker = await claim_latest_attempt(acceptance, recorder, name)
    assert seen[1:] == [(2, 6), (1, 12)]
    job = await job_of(ledger, job_id)
    assert (job.state, job.reason, job.failed_attempts) == ("JOB_STATE_FAILED", "CUDA_OUT_OF_MEMORY", 1)
    assert "max_length" in job.advice
    assert "halve" not in job.advice, "a micro-batch of one row cannot be halved"
    warnings = [each.warning.reason for each in await events_of(ledger, job_id) if each.HasField("warning")]
    assert warnings == ["CUDA_OUT_OF_MEMORY"] * 2


@pytest.mark.parametrize(
    ("verb", "state", "rows"),
    [(lifecycle.pause, "JOB_STATE_PAUSED", 2), (lifecycle.cancel, "JOB_STATE_CANCELLED", 4)],
)
async def test_out_of_memory_while_pausing_or_cancelling(
    ledger: Ledger,
    acceptance: WorkerRequests,
    recorder: Recorder,
    verb: Callable[[Decision], None],
    state: str,
    rows: int,
) -> None:
    """A paused job resumes with half the micro-batch; a cancelled job ends."""
    hyper = Hyperparameters(per_device_train_batch_size=4, gradient_accumulation_steps=1, save_total_limit=3)
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder, hyper)
    async with ledger.decide(job_id) as decision:
        verb(decision)
    await worker.fail("HOST_OUT_OF_MEMORY")
    job = await job_of(ledger, job_id)
    assert (job.state, job.failed_attempts) == (state, 0)
    assert views.job(job).resolved_spec.hyperparameters.per_device_train_batch_size == rows


async def test_checkpoint_of_expired_claim_prunes_nothing(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    """A worker that continues after its lease expired would delete its successor's checkpoint."""
    hyper = Hyperparameters(save_total_limit=1)
    job_id, zombie = await create_job_in_training(ledger, acceptance, recorder, hyper)
    for step in (10, 20):
        await zombie.report(CheckpointSaved(step=step, path=zombie.path(f"step-{step}")))
    attempt = (await attempts_of(ledger, job_id))[-1]
    await acceptance.expire(job_id, zombie.claim_id, attempt.beat)
    heir = await claim_latest_attempt(acceptance, recorder, "c")
    answer = await zombie.report(CheckpointSaved(step=30, path=zombie.path("step-30")))
    assert answer.directive == Directive.DIRECTIVE_STOP
    assert not recorder.discarded
    again = await heir.claim(recorder.offered[-1])
    assert [checkpoint.step for checkpoint in again.assignment.checkpoints] == [20, 10]


async def test_events_after_stage_ending_event_are_dropped(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder)
    await worker.fail("KILLED")
    answer = await worker.report(log_at(1))
    assert answer.directive == Directive.DIRECTIVE_STOP
    assert not any(event.HasField("log") for event in await events_of(ledger, job_id))


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b""])
async def test_event_of_another_claim_fails_the_claim(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder, data: bytes
) -> None:
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder)
    await acceptance.report(ReportRequest(job_id=job_id, claim_id=worker.claim_id, first_ordinal=0, events=[data]))
    job = await job_of(ledger, job_id)
    assert (job.state, job.reason) == ("JOB_STATE_QUEUED", "RETRYING")
    assert "BAD_EVENT" in job.message


async def test_cancelling_a_waiting_job_ends_it_at_once(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    job_id = await create(ledger)
    for _ in range(2):
        async with ledger.decide(job_id) as decision:
            lifecycle.cancel(decision)
    assert (await job_of(ledger, job_id)).state == "JOB_STATE_CANCELLED"
    assert (await Worker(acceptance).claim(recorder.offered[0])).refused.reason == "ENDED"
    assert sum(frame.terminal for frame in recorder.frames) == 1


async def test_cancelling_a_running_job_tells_its_worker(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder)
    async with ledger.decide(job_id) as decision:
        lifecycle.cancel(decision)
    assert (await job_of(ledger, job_id)).state == "JOB_STATE_CANCELLING"
    assert (await worker.report()).directive == Directive.DIRECTIVE_CANCEL
    await worker.report(StageReleased(reason="CANCELLED"))
    assert (await job_of(ledger, job_id)).state == "JOB_STATE_CANCELLED"


async def test_event_of_a_released_attempt_says_what_is_kept(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    """Only a training has checkpoints to continue from."""
    job_id = await create(ledger)
    first = await claim_latest_attempt(acceptance, recorder, "a")
    await first.report(StageReleased(reason="DRAINED"))
    assert "starts its preflight again" in (await job_of(ledger, job_id)).message
    trained, worker = await create_job_in_training(ledger, acceptance, recorder)
    await worker.report(StageReleased(reason="DRAINED"))
    assert "continues it from its latest checkpoint" in (await job_of(ledger, trained)).message


async def test_stage_completed_after_cancel_ends_cancelled(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder)
    async with ledger.decide(job_id) as decision:
        lifecycle.cancel(decision)
    await worker.complete()
    assert (await job_of(ledger, job_id)).state == "JOB_STATE_CANCELLED"


async def test_pause_and_resume_continue_the_same_job(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder)
    await worker.report(CheckpointSaved(step=10, path=worker.path("step-10"), manifest_sha256="f" * 64))
    async with ledger.decide(job_id) as decision:
        lifecycle.pause(decision)
    assert (await worker.report()).directive == Directive.DIRECTIVE_PAUSE
    await worker.report(StageReleased(reason="PAUSED"))
    assert (await job_of(ledger, job_id)).state == "JOB_STATE_PAUSED"
    async with ledger.decide(job_id) as decision:
        lifecycle.resume(decision)
    again = await claim_latest_attempt(acceptance, recorder, "c")
    assert [checkpoint.step for checkpoint in again.assignment.checkpoints] == [10]
    job = await job_of(ledger, job_id)
    assert (job.state, job.attempt, job.failed_attempts) == ("JOB_STATE_RUNNING", 2, 0)


async def test_a_stage_completed_while_pausing_pauses_before_the_next(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder)
    async with ledger.decide(job_id) as decision:
        lifecycle.pause(decision)
    await worker.complete()
    job = await job_of(ledger, job_id)
    assert (job.state, job.stage) == ("JOB_STATE_PAUSED", "STAGE_EVALUATION")
    async with ledger.decide(job_id) as decision:
        lifecycle.resume(decision)
    assert (recorder.offered[-1].stage, recorder.offered[-1].attempt) == ("STAGE_EVALUATION", 1)


async def test_ended_job_refuses_cancel_pause_and_resume(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    job_id = await create(ledger)
    await (await claim_latest_attempt(acceptance, recorder)).fail("BAD_DATA", "FAULT_USER_ERROR")
    for verb in (lifecycle.cancel, lifecycle.pause, lifecycle.resume):
        with pytest.raises(FailedPrecondition, match="is FAILED"):
            async with ledger.decide(job_id) as decision:
                verb(decision)


async def test_metrics_of_repeated_steps_replace_earlier_ones(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder)
    await worker.report(log_at(1, 3.0), log_at(2, 2.0), log_at(3, 1.0))
    await worker.fail("KILLED")
    again = await claim_latest_attempt(acceptance, recorder, "c")
    await again.report(log_at(2, 2.5), log_at(3, math.nan))
    async with ledger.database.read() as session:
        (series,) = await read_series(session, job_id, ["loss"], 100)
    assert [point.step for point in series.points] == [1, 2, 3]
    assert [point.value for point in series.points[:2]] == [3.0, 2.5]
    assert math.isnan(series.points[2].value), "a NaN loss must be shown as it is"


async def test_curves_are_downsampled_evenly_with_first_and_last_point(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder)
    await worker.report(*(log_at(step) for step in range(1, 101)))
    async with ledger.database.read() as session:
        for limit in (2, 3, 7, 99, 100, 1000):
            (series,) = await read_series(session, job_id, ["loss"], limit)
            steps = [point.step for point in series.points]
            assert len(steps) <= limit
            assert (steps[0], steps[-1]) == (1, 100)


async def test_progress_and_best_come_from_accepted_events(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder)
    await worker.report(
        log_at(10, 2.0), Eval(step=10, eval_loss=3.0, best=True), Eval(step=20, eval_loss=3.5), log_at(20, 1.5)
    )
    progress = views.job(await job_of(ledger, job_id)).progress
    assert (progress.step, progress.total_steps, progress.loss) == (20, 48, 1.5)
    assert (progress.eval_loss, progress.best_eval_loss, progress.best_step) == (3.5, 3.0, 10)


async def test_assignment_contains_results_of_earlier_stages(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    await create(ledger)
    for _ in range(3):
        await (await claim_latest_attempt(acceptance, recorder)).complete()
    exporter = await claim_latest_attempt(acceptance, recorder)
    assert exporter.assignment.preflight == PreflightResult(total_steps=48)
    assert exporter.assignment.training.total_steps == 48
    assert exporter.assignment.evaluation.tuned_loss == 3.0


async def test_claim_response_with_long_curves_fits_into_one_message(ledger: Ledger, recorder: Recorder) -> None:
    """The broker refuses larger ones, so that a job would fail at its export after days of training."""
    acceptance = WorkerRequests(ledger, NoTrainers(), max_curves_bytes=10_000)
    _, worker = await create_job_in_training(ledger, acceptance, recorder)
    extras = {f"expert_{number}/share_of_tokens": 0.1 * number for number in range(20)}
    await worker.report(*(Log(step=step, extras=extras) for step in range(1, 101)))
    await worker.complete()
    await (await claim_latest_attempt(acceptance, recorder, "c")).complete()
    exporter = await claim_latest_attempt(acceptance, recorder, "d")
    curves = exporter.assignment.metrics
    assert len(curves) >= 20
    assert sum(curve.ByteSize() for curve in curves) <= 10_000
    assert all((curve.points[0].step, curve.points[-1].step) == (1, 100) for curve in curves)


async def test_training_and_evaluation_do_not_share_a_curve(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    """Both report an entropy at the same step; one curve of both would zigzag."""
    _, worker = await create_job_in_training(ledger, acceptance, recorder)
    await worker.report(Log(step=1, extras={"entropy": 2.0}), Eval(step=1, extras={"entropy": 3.0}))
    await worker.complete()
    await (await claim_latest_attempt(acceptance, recorder, "c")).complete()
    exporter = await claim_latest_attempt(acceptance, recorder, "d")
    curves = {curve.name: [point.value for point in curve.points] for curve in exporter.assignment.metrics}
    assert (curves["entropy"], curves["eval_entropy"]) == ([2.0], [3.0])


async def test_all_checkpoints_but_best_and_newest_two_are_deleted(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    hyper = Hyperparameters(save_total_limit=3)
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder, hyper)
    for step in range(10, 70, 10):
        saved = CheckpointSaved(step=step, path=worker.path(f"step-{step}"), best=step == 20, eval_loss=1.0)
        await worker.report(saved)
    assert recorder.discarded == ["default/" + worker.path(f"step-{step}") for step in (10, 30, 40)]
    pruned = [
        event.checkpoint_pruned.step for event in await events_of(ledger, job_id) if event.HasField("checkpoint_pruned")
    ]
    assert pruned == [10, 30, 40]
    await worker.fail("KILLED")
    again = await claim_latest_attempt(acceptance, recorder, "c")
    assert [checkpoint.step for checkpoint in again.assignment.checkpoints] == [60, 50, 20]


async def test_preflight_assignment_lists_token_shards_of_its_tenant(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder
) -> None:
    """No data reaches another tenant, and rows are tokenised once."""
    made = await create(ledger)
    path = f"jobs/{made}/preflight/1/shards/abc"
    first = await claim_latest_attempt(acceptance, recorder)
    assert not first.assignment.shards
    await first.report(ArtifactSaved(path=path, kind="shards", sha256="5" * 64))
    await create(ledger)
    second = await claim_latest_attempt(acceptance, recorder, "b")
    assert [(one.content_key, one.path, one.manifest_sha256) for one in second.assignment.shards] == [
        ("abc", path, "5" * 64),
    ]  # fmt: skip
    await create(ledger, tenant="other")
    assert not (await claim_latest_attempt(acceptance, recorder, "c")).assignment.shards
    await first.complete()
    assert not (await claim_latest_attempt(acceptance, recorder, "d")).assignment.shards


@pytest.mark.parametrize(
    "path",
    [
        "datasets/ds_1/rows.jsonl",
        "jobs/{job}/training/2/step-1",
        "jobs/{job}/preflight/1/step-1",
        "jobs/ftjob_other/training/1/step-1",
        "jobs/{job}/training/1",
        "jobs/{job}/training/1/../../../../datasets/ds_1",
        "jobs/{job}/training/1/./step-1",
        "jobs/{job}/training/1//step-1",
        "/jobs/{job}/training/1/step-1",
    ],
)
@pytest.mark.parametrize("kind", ["checkpoint", "artifact", "result"])
async def test_worker_cannot_name_files_of_others(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder, kind: str, path: str
) -> None:
    """Six false checkpoints made pruning delete another dataset's folder; a false artifact was downloaded."""
    await _refuses_path(ledger, acceptance, recorder, kind, path)


@pytest.mark.parametrize("kind", ["checkpoint", "artifact"])
async def test_checkpoints_and_artifacts_have_a_path(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder, kind: str
) -> None:
    """A download of one without a path is an internal error."""
    await _refuses_path(ledger, acceptance, recorder, kind, "")


async def _refuses_path(ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder, kind: str, path: str) -> None:
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder)
    path = path.format(job=job_id)
    payloads = {
        "checkpoint": CheckpointSaved(step=1, path=path),
        "artifact": ArtifactSaved(path=path, kind="shards"),
        "result": StageCompleted(training=TrainingResult(best_checkpoint_path=path)),
    }
    await worker.report(payloads[kind])
    attempt = next(each for each in await attempts_of(ledger, job_id) if each.stage == "STAGE_TRAINING")
    assert (attempt.state, attempt.outcome) == ("ENDED", "FAILED")
    reasons = [event.stage_failed.reason for event in await events_of(ledger, job_id) if event.HasField("stage_failed")]
    assert reasons == ["BAD_EVENT"]
    async with ledger.database.read() as session:
        assert not (await session.exec(select(SavedCheckpoint))).all()
        assert not (await session.exec(select(SavedArtifact))).all()


@pytest.mark.parametrize(
    "payload",
    [
        StateChanged(message="done"),
        CheckpointPruned(step=1),
        ConfigResolved(resolved_spec=FineTuningJobSpec(base_model="other")),
        StageCompleted(preflight=PreflightResult(total_steps=1)),
    ],
    ids=lambda payload: type(payload).__name__,
)
async def test_worker_cannot_say_what_others_decide(
    ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder, payload: Message
) -> None:
    """A training child that was taken over would tell watchers that its job has succeeded."""
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder)
    await worker.report(payload)
    attempt = next(each for each in await attempts_of(ledger, job_id) if each.stage == "STAGE_TRAINING")
    assert (attempt.outcome, attempt.reason) == ("FAILED", "BAD_EVENT")


async def test_unknown_fault_ends_the_attempt(ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder) -> None:
    """It would otherwise be sent again and again, until its lease ends."""
    job_id, worker = await create_job_in_training(ledger, acceptance, recorder, max_attempts=1)
    failed = StageFailed(reason="X")
    failed.fault = 99  # type: ignore[assignment] # what a later version might send
    await worker.report(failed)
    assert (await job_of(ledger, job_id)).state == "JOB_STATE_FAILED"


async def test_shards_come_from_preflights_only(ledger: Ledger, acceptance: WorkerRequests, recorder: Recorder) -> None:
    """A trainer could replace the training data of every later job of its tenant."""
    _, worker = await create_job_in_training(ledger, acceptance, recorder)
    await worker.report(ArtifactSaved(path=worker.path("shards/abc"), kind="shards", sha256="5" * 64))
    await create(ledger)
    assert not (await claim_latest_attempt(acceptance, recorder, "b")).assignment.shards
