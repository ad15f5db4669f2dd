"""A pure model of the life of work of any kind, written from the rules and not from the code; and operations that both
the model and real gateways carry out."""

import asyncio
import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from sqlmodel import col, select

from chassis.errors import FailedPrecondition, NotFound
from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1 import evaluation_service_pb2, event_pb2, export_service_pb2, fine_tuning_service_pb2, work_pb2
from finetuneflow.v1.event_pb2 import Event
from finetuneflow.v1.fine_tuning_job_pb2 import Fault, JobState, Stage
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec, Hyperparameters
from finetuneflow.v1.stage_result_pb2 import TrainingResult
from gateway.servicers.fine_tuning import FineTuning
from gateway.servicers.results import Evaluations, Exports
from gateway.servicers.work import WorkMethods
from gateway.sql.database import Database
from gateway.sql.tables import Attempt, SavedCheckpoint, Work, WorkEvent
from gateway.work.kinds import EVALUATION, EXPORT, FINE_TUNING_JOB, KINDS, Kind, queue_of
from gateway.work.ledger import Ledger
from gateway.work.worker_requests import WorkerRequests
from tests.fakes.planning import NoTrainers
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import PAYLOADS, completed_stage, create

STAGES = ("PREFLIGHT", "TRAINING", "EVALUATION", "EXPORT")
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
OUT_OF_MEMORY = ("CUDA_OUT_OF_MEMORY", "HOST_OUT_OF_MEMORY")
MAX_ACCUMULATION = 1024

Token: TypeAlias = tuple[Any, ...]
"""A payload of a worker: ("log", step), ("checkpoint", step, best), ("restored", step), ("config", micro-batch,
accumulation, checkpoints to keep), ("completed",), ("failed", reason, user error), ("released",), ("garbage",),
("foreign",)."""

_CONTRACTS = {
    "ftjob": ("FineTuningJob", fine_tuning_service_pb2, "job_id", "fine_tuning_job"),
    "ev": ("Evaluation", evaluation_service_pb2, "evaluation_id", "evaluation"),
    "ex": ("Export", export_service_pb2, "export_id", "export"),
}
"""By the prefix of an id: the noun of its methods, their module, and the names of two fields."""
_KINDS = {
    "log": "log",
    "checkpoint": "checkpoint",
    "restored": "restored",
    "config": "config_resolved",
    "completed": "stage_completed",
    "failed": "stage_failed",
    "released": "stage_released",
}


@dataclass
class Try:
    """An attempt."""

    stage: str
    number: int
    state: str = "READY"
    claim_id: str | None = None
    beat: int = 0
    next_ordinal: int = 0
    outcome: str = ""
    counted: bool = False


@dataclass
class Saved:
    """A checkpoint."""

    path: str
    step: int
    best: bool
    pruned: bool = False


@dataclass
class Model:
    """One work. Its operations return the answer to the caller."""

    max_attempts: int
    plan: tuple[str, ...] = STAGES
    deleted: bool = False
    state: str = "VALIDATING"
    stage: str = ""
    attempt: int = 0
    failures: int = 0
    tries: list[Try] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    """Kinds of the events, by sequence."""
    checkpoints: list[Saved] = field(default_factory=list)
    """Checkpoints in the order of acceptance."""
    config: tuple[int, int, int, int] | None = None
    """Micro-batch, accumulation, micro-batch of the evaluation, checkpoints to keep."""

    def __post_init__(self) -> None:
        if not self.tries:
            self.stage = self.plan[0]
            self._ready(self.stage)

    @property
    def open(self) -> Try | None:
        """Rule 1: one attempt is not ENDED."""
        return next((each for each in self.tries if each.state != "ENDED"), None)

    def claim(self, stage: str, number: int, claim_id: str) -> Any:
        """Rule 3."""
        if self.deleted:
            return "UNKNOWN"
        mine = self.open
        if mine is None or (mine.stage, mine.number) != (stage, number):
            return "ENDED"
        if mine.state == "CLAIMED" and mine.claim_id != claim_id:
            return "CLAIMED_BY_ANOTHER"
        if mine.state == "READY":
            mine.state, mine.claim_id = "CLAIMED", claim_id
            self._enter("VALIDATING" if stage == "PREFLIGHT" else "RUNNING")
        kept = sorted(
            (saved for saved in self.checkpoints if not saved.pruned),
            key=lambda saved: (saved.step, self.checkpoints.index(saved)),
        )
        return stage, number, self.config and self.config[:3], [saved.path for saved in reversed(kept)]

    def report(self, claim_id: str, first: int, tokens: Sequence[Token]) -> Any:
        """Rule 4."""
        mine = None if self.deleted else self.open
        if mine is None or mine.claim_id != claim_id:
            return first, "STOP"
        mine.beat += 1
        if first <= mine.next_ordinal:
            for token in tokens[mine.next_ordinal - first :]:
                if not self._accept(mine, token):
                    break
        return mine.next_ordinal, {"PAUSING": "PAUSE", "CANCELLING": "CANCEL"}.get(self.state, "RUN")

    def expire(self, claim_id: str, beat: int) -> None:
        """Rule 6."""
        mine = None if self.deleted else self.open
        if mine is not None and (mine.claim_id, mine.beat) == (claim_id, beat):
            self._fail_claim(mine)

    def cancel(self) -> str:
        """Rule 8, as are the other verbs."""
        if self.deleted:
            return "NOT_FOUND"
        if self.state in ("SUCCEEDED", "FAILED"):
            return "REFUSED"
        if self.state not in ("CANCELLING", "CANCELLED"):
            self._stop("CANCELLING", "CANCELLED")
        return self.state

    def pause(self) -> str:
        if self.deleted:
            return "NOT_FOUND"
        if self.state in (*ENDED, "CANCELLING"):
            return "REFUSED"
        if self.state not in ("PAUSING", "PAUSED"):
            self._stop("PAUSING", "PAUSED")
        return self.state

    def resume(self) -> str:
        if self.deleted:
            return "NOT_FOUND"
        if self.state in (*ENDED, "CANCELLING"):
            return "REFUSED"
        if self.state == "PAUSED":
            self._ready(self.stage)
        elif self.state == "PAUSING":
            self._enter("VALIDATING" if self.stage == "PREFLIGHT" else "RUNNING")
        return self.state

    def delete(self) -> str:
        if self.deleted:
            return "NOT_FOUND"
        if self.state not in ENDED:
            return "REFUSED"
        self.deleted = True
        return "DELETED"

    def _stop(self, while_claimed: str, otherwise: str) -> None:
        mine = self.open
        if mine is not None and mine.state == "CLAIMED":
            self._enter(while_claimed)
            return
        if mine is not None:
            mine.state, mine.outcome = "ENDED", otherwise
        self._enter(otherwise)

    def _accept(self, mine: Try, token: Token) -> bool:
        """False when nothing after it counts: rule 7, and rule 10 for what is no event of this claim."""
        what, *values = token
        if what in ("garbage", "foreign") or (what == "config" and mine.stage != "PREFLIGHT"):
            self._fail_claim(mine)
            return False
        mine.next_ordinal += 1
        self.events.append(_KINDS[what])
        match what:
            case "config":
                micro, accumulation, keep = values
                self.config = micro, accumulation, micro, keep
            case "checkpoint":
                self._save(Saved(_path(mine.claim_id or "", mine.next_ordinal - 1), *values))
            case "restored":
                # The best is found anew among what the run goes on from; a loss is its step's distance from 5.
                found = [each for each in self.checkpoints if not each.pruned and each.step <= values[0]]
                for each in self.checkpoints:
                    each.best = False
                if found:
                    min(found, key=lambda each: (_loss(each.step), each.step)).best = True
            case "completed":
                self._end(mine, "COMPLETED")
                return False
            case "released":
                self._end(mine, "RELEASED")
                return False
            case "failed":
                self._fail(mine, *values)
                return False
        return True

    def _fail_claim(self, mine: Try) -> None:
        self.events.append("stage_failed")
        self._fail(mine, "LEASE_EXPIRED", False)

    def _fail(self, mine: Try, reason: str, user_error: bool) -> None:
        if reason in OUT_OF_MEMORY and not user_error and self._halve():
            self.events += ["warning", "config_resolved"]
            self._end(mine, "OUT_OF_MEMORY")
            return
        counted = self.state != "CANCELLING" and (self.state != "PAUSING" or user_error)
        self.failures += counted
        hopeless = counted and reason in OUT_OF_MEMORY and self.stage == "TRAINING"
        self._end(mine, "FAILED", counted=counted, final=user_error or hopeless)

    def _halve(self) -> bool:
        """Halves the rows of a micro-batch at least; a step keeps its rows."""
        if self.stage != "TRAINING" or self.config is None or self.state == "CANCELLING":
            return False
        micro, accumulation, evaluation, keep = self.config
        rows = micro * accumulation
        smaller = next((n for n in range(micro // 2, 0, -1) if rows % n == 0), None)
        if smaller is not None and rows // smaller <= MAX_ACCUMULATION:
            micro, accumulation = smaller, rows // smaller
        after = micro, accumulation, max(evaluation // 2, 1), keep
        changed, self.config = after != self.config, after
        return changed

    def _end(self, mine: Try, outcome: str, *, counted: bool = False, final: bool = False) -> None:
        mine.state, mine.outcome, mine.counted = "ENDED", outcome, counted
        if self.state == "CANCELLING":
            self._enter("CANCELLED")
        elif final:
            self._enter("FAILED")
        elif outcome == "COMPLETED" and self.stage == self.plan[-1]:
            self._enter("SUCCEEDED")
        elif self.state == "PAUSING":
            if outcome == "COMPLETED":
                self.stage, self.attempt = self.plan[self.plan.index(self.stage) + 1], 0
            self._enter("PAUSED")
        elif outcome == "COMPLETED":
            self._ready(self.plan[self.plan.index(self.stage) + 1])
        elif counted and self.failures >= self.max_attempts:
            self._enter("FAILED")
        else:
            self._ready(self.stage)

    def _ready(self, stage: str) -> None:
        self.attempt = self.attempt + 1 if stage == self.stage else 1
        self.stage = stage
        self.tries.append(Try(stage, self.attempt))
        self._enter("VALIDATING" if stage == "PREFLIGHT" else "QUEUED")

    def _enter(self, state: str) -> None:
        self.state = state
        self.events.append("state_changed")

    def _save(self, saved: Saved) -> None:
        """Rule 9."""
        if saved.best:
            for each in self.checkpoints:
                each.best = False
        self.checkpoints.append(saved)
        if self.config is None:
            return
        newest_first = [each for each in reversed(self.checkpoints) if not each.pruned]
        kept = [each for each in newest_first if each.best or each in newest_first[:2]]
        for each in newest_first[2:]:
            if each not in kept and len(kept) < self.config[3]:
                kept.append(each)
        for each in newest_first:
            if each not in kept:
                each.pruned = True
                self.events.append("checkpoint_pruned")


def _path(claim_id: str, ordinal: int) -> str:
    """Path of a checkpoint below its attempt's folder."""
    return f"{claim_id}/step-{ordinal}"


def _without_folder(path: str) -> str:
    """Path without jobs/<job>/<stage>/<attempt>/."""
    return path.split("/", 4)[4]


def _loss(step: int) -> float:
    return float(abs(step - 5))


class Gateway:
    """One replica, as workers and callers reach it."""

    def __init__(self, database: Database, recorder: Recorder, store: ArtifactStore) -> None:
        self.ledger = Ledger(database, recorder.publish, recorder.offer, recorder.discard)
        self.acceptance = WorkerRequests(self.ledger, NoTrainers())
        methods = {kind: WorkMethods(kind, self.ledger, None, store) for kind in KINDS.values()}  # type: ignore[arg-type]
        self.services: dict[str, Any] = {
            "FineTuningJob": FineTuning(methods[FINE_TUNING_JOB], None, None),  # type: ignore[arg-type]
            "Evaluation": Evaluations(methods[EVALUATION], None, None),  # type: ignore[arg-type]
            "Export": Exports(methods[EXPORT], None),  # type: ignore[arg-type]
        }


class Operation(Protocol):
    def on_model(self, model: Model) -> Any: ...

    async def on_gateway(self, gateway: Gateway, job_id: str) -> Any: ...


@dataclass(frozen=True)
class Claim:
    stage: str
    number: int
    claim_id: str

    def on_model(self, model: Model) -> Any:
        return model.claim(self.stage, self.number, self.claim_id)

    async def on_gateway(self, gateway: Gateway, job_id: str) -> Any:
        response = await gateway.acceptance.claim(
            work_pb2.ClaimRequest(
                job_id=job_id,
                stage=Stage.Value(f"STAGE_{self.stage}"),
                attempt=self.number,
                claim_id=self.claim_id,
                node_id="node",
            ),
            queue_of(f"STAGE_{self.stage}", "default"),
        )
        if response.HasField("refused"):
            return response.refused.reason
        given = response.assignment
        hyper = given.resolved_spec.hyperparameters
        rows = hyper.per_device_train_batch_size
        config = rows and (rows, hyper.gradient_accumulation_steps, hyper.per_device_eval_batch_size)
        paths = [_without_folder(checkpoint.path) for checkpoint in given.checkpoints]
        return Stage.Name(given.stage).removeprefix("STAGE_"), given.attempt, config or None, paths


@dataclass(frozen=True)
class Report:
    claim: Claim
    first: int
    tokens: tuple[Token, ...]

    def on_model(self, model: Model) -> Any:
        return model.report(self.claim.claim_id, self.first, self.tokens)

    async def on_gateway(self, gateway: Gateway, job_id: str) -> Any:
        events = [self._event(job_id, token, self.first + index) for index, token in enumerate(self.tokens)]
        response = await gateway.acceptance.report(
            work_pb2.ReportRequest(job_id=job_id, claim_id=self.claim.claim_id, first_ordinal=self.first, events=events)
        )
        directive = work_pb2.Directive.Name(response.directive).removeprefix("DIRECTIVE_")
        return response.next_ordinal, directive

    def _event(self, job_id: str, token: Token, ordinal: int) -> bytes:
        what, *values = token
        match what:
            case "garbage":
                return b"\xff\xff\xff"
            case "log" | "foreign":
                payload: Any = event_pb2.Log(step=values[0] if values else 1, loss=1.0)
            case "checkpoint":
                step, best = values
                folder = f"jobs/{job_id}/{self.claim.stage.lower()}/{self.claim.number}"
                path = f"{folder}/{_path(self.claim.claim_id, ordinal)}"
                payload = event_pb2.CheckpointSaved(step=step, best=best, path=path, eval_loss=_loss(step))
            case "restored":
                payload = event_pb2.Restored(checkpoint_step=values[0])
            case "config":
                micro, accumulation, keep = values
                hyper = Hyperparameters(
                    per_device_train_batch_size=micro,
                    per_device_eval_batch_size=micro,
                    gradient_accumulation_steps=accumulation,
                    save_total_limit=keep,
                )
                payload = event_pb2.ConfigResolved(resolved_spec=FineTuningJobSpec(hyperparameters=hyper))
            case "completed":
                payload = completed_stage(job_id, f"STAGE_{self.claim.stage}", self.claim.number)
            case "released":
                payload = event_pb2.StageReleased(reason="PAUSED")
            case "failed":
                reason, user_error = values
                fault = Fault.FAULT_USER_ERROR if user_error else Fault.FAULT_SYSTEM_ERROR
                payload = event_pb2.StageFailed(reason=reason, fault=fault, message="it broke")
        return Event(
            job_id=job_id,
            stage=Stage.Value(f"STAGE_{self.claim.stage}"),
            attempt=self.claim.number + (what == "foreign"),
            ordinal=ordinal,
            **{PAYLOADS[payload.DESCRIPTOR.name]: payload},
        ).SerializeToString()


@dataclass(frozen=True)
class Expire:
    claim_id: str
    beat: int

    def on_model(self, model: Model) -> Any:
        return model.expire(self.claim_id, self.beat)

    async def on_gateway(self, gateway: Gateway, job_id: str) -> Any:
        return await gateway.acceptance.expire(job_id, self.claim_id, self.beat)


@dataclass(frozen=True)
class Verb:
    name: Literal["cancel", "pause", "resume", "delete"]

    def on_model(self, model: Model) -> Any:
        return getattr(model, self.name)()

    async def on_gateway(self, gateway: Gateway, job_id: str) -> Any:
        noun, api, field, resource = _CONTRACTS[job_id.partition("_")[0]]
        request = getattr(api, f"{self.name.title()}{noun}Request")(**{field: job_id})
        try:
            response = await getattr(gateway.services[noun], f"{self.name.title()}{noun}")(request, None)
        except FailedPrecondition:
            return "REFUSED"
        except NotFound:
            return "NOT_FOUND"
        if self.name == "delete":
            return "DELETED"
        return JobState.Name(getattr(response, resource).state).removeprefix("JOB_STATE_")


def seen_in(model: Model) -> dict[str, Any] | None:
    """Returns the rows that SQL must hold; None if the job was deleted."""
    if model.deleted:
        return None
    return {
        "job": (model.state, model.stage, model.attempt, model.failures, model.config),
        "attempts": sorted(
            (STAGES.index(t.stage), t.number, t.state, t.claim_id, t.beat, t.next_ordinal, t.outcome, t.counted)
            for t in model.tries
        ),
        "events": model.events,
        "checkpoints": [(saved.path, saved.step, saved.best, saved.pruned) for saved in model.checkpoints],
    }


async def seen_in_sql(database: Database, job_id: str) -> dict[str, Any] | None:
    async with database.read() as session:
        job = (await session.exec(select(Work).where(Work.id == job_id))).one_or_none()
        tries = (await session.exec(select(Attempt).where(Attempt.work_id == job_id))).all()
        query = select(WorkEvent).where(WorkEvent.work_id == job_id).order_by(col(WorkEvent.sequence))
        events = (await session.exec(query)).all()
        saved = select(SavedCheckpoint).where(SavedCheckpoint.work_id == job_id)
        checkpoints = (await session.exec(saved.order_by(col(SavedCheckpoint.sequence)))).all()
    if job is None:
        assert not (tries or events or checkpoints), "rows of a deleted job remain"
        return None
    assert [event.sequence for event in events] == list(range(1, job.last_sequence + 1)), "sequences are not dense"
    assert sum(each.state != "ENDED" for each in tries) <= 1, "two attempts are open"
    changes = [Event.FromString(event.event).state_changed for event in events if event.kind == "state_changed"]
    ends = [each for each in changes if JobState.Name(each.state).removeprefix("JOB_STATE_") in ENDED]
    assert len(ends) == (job.end_time is not None), "a job ends once"
    if ends:
        assert events[-1].kind == "state_changed", "events follow the terminal state change"
        assert changes[-1] == ends[0], "events follow the terminal state change"
        assert all(each.state == "ENDED" for each in tries), "an attempt of an ended job is open"
    config = None
    if job.config is not None:
        hyper = event_pb2.ConfigResolved.FromString(job.config).resolved_spec.hyperparameters
        config = (
            hyper.per_device_train_batch_size,
            hyper.gradient_accumulation_steps,
            hyper.per_device_eval_batch_size,
            hyper.save_total_limit,
        )
    state, stage = job.state.removeprefix("JOB_STATE_"), job.stage.removeprefix("STAGE_")
    return {
        "job": (state, stage, job.attempt, job.failed_attempts, config),
        "attempts": sorted(
            (
                STAGES.index(t.stage.removeprefix("STAGE_")),
                t.attempt,
                t.state,
                t.claim_id,
                t.beat,
                t.next_ordinal,
                t.outcome,
                t.counted,
            )
            for t in tries
        ),
        "events": [event.kind for event in events],
        "checkpoints": [(_without_folder(row.path), row.step, row.best, row.pruned) for row in checkpoints],
    }


class Pair:
    """A model and its job, which two gateways serve."""

    def __init__(self, gateways: Sequence[Gateway], recorder: Recorder, job_id: str, model: Model) -> None:
        self.gateways = gateways
        self.recorder = recorder
        self.job_id = job_id
        self.model = model
        self.certain = True
        """Returns True if the last operations have the same result in every order."""

    @classmethod
    async def create(
        cls, gateways: Sequence[Gateway], recorder: Recorder, max_attempts: int, kind: Kind = FINE_TUNING_JOB
    ) -> "Pair":
        ledger = gateways[0].ledger
        model_of = None
        if kind is not FINE_TUNING_JOB:
            model_of = await create(ledger, training=TrainingResult(total_steps=1).SerializeToString())
        for log in (recorder.frames, recorder.offered, recorder.discarded):
            log.clear()
        job_id = await create(ledger, kind, max_attempts=max_attempts, job_id=model_of)
        plan = tuple(stage.removeprefix("STAGE_") for stage in kind.plan)
        return cls(gateways, recorder, job_id, Model(max_attempts, plan))

    async def do(self, *operations: Operation) -> list[Any]:
        """Runs the operations concurrently, each at a different gateway, and checks that answers and rows are those of
        the model for one of their orders."""
        answers = await asyncio.gather(
            *(
                operation.on_gateway(gateway, self.job_id)
                for operation, gateway in zip(operations, itertools.cycle(self.gateways), strict=False)
            )
        )
        found = await seen_in_sql(self.gateways[0].ledger.database, self.job_id)
        orders: list[Any] = []
        matching = None
        for order in itertools.permutations(range(len(operations))):
            model = copy.deepcopy(self.model)
            recorder = {index: operations[index].on_model(model) for index in order}
            expected = [recorder[index] for index in range(len(operations))], seen_in(model)
            if matching is None and (answers, found) == expected:
                matching = model
            orders.append(expected)
        if matching is None:
            raise AssertionError(f"{operations} on {self.model}\ngave {answers} {found}\nand not one of {orders}")
        self.certain = all(expected == orders[0] for expected in orders)
        self.model = matching
        self._check_announcements()
        return answers

    def _check_announcements(self) -> None:
        """Watchers receive each sequence once, workers each READY attempt; only pruned files are deleted."""
        sequences = sorted(frame.sequence for frame in self.recorder.frames)
        assert sequences == list(range(1, len(self.model.events) + 1))
        offered = [(each.stage.removeprefix("STAGE_"), each.attempt) for each in self.recorder.offered]
        assert sorted(offered) == sorted((each.stage, each.number) for each in self.model.tries)
        pruned = sorted(saved.path for saved in self.model.checkpoints if saved.pruned)
        assert sorted(_without_folder(path.removeprefix("default/")) for path in self.recorder.discarded) == pruned
