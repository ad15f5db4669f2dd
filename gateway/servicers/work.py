"""The methods that every kind of work has: create, verbs, delete, events, watch."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from google.protobuf.message import Message
from sqlalchemy import case, inspect, tuple_
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, delete, select
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import AlreadyExists, FailedPrecondition, InvalidArgument, Violation
from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1.event_pb2 import Event, Severity
from finetuneflow.v1.fine_tuning_job_pb2 import JobState
from gateway import views
from gateway.comparisons import judging_jobs
from gateway.paging import MAX_PAGE_SIZE
from gateway.quotas import DEFAULT_QUOTAS, Quotas
from gateway.sql.tables import (
    Attempt,
    Delivery,
    Metric,
    SavedArtifact,
    SavedCheckpoint,
    SavedResult,
    Work,
    WorkEvent,
)
from gateway.uncancellable import finished, in_thread
from gateway.watch.fanout import Fanout, check_within
from gateway.watch.frames import UNKNOWN_KIND, frame_of_stored
from gateway.watch.pages import first_bytes
from gateway.work import lifecycle
from gateway.work.kinds import FINE_TUNING_JOB, KINDS, Kind, no_such
from gateway.work.ledger import Decision, Ledger

_KINDS = frozenset(f.name for f in Event.DESCRIPTOR.oneofs_by_name["payload"].fields) | {UNKNOWN_KIND}
_WATCH_HEARTBEAT_SECONDS = 15.0
_MAX_REQUEST_ID = 128
_ROWS_AT_ONCE = 5000
_EVENTS_PAGE_SIZE = 200
_MAX_ATTEMPTS_SHOWN = 100


class WorkMethods:
    """The methods of one kind, for its servicer."""

    def __init__(
        self, kind: Kind, ledger: Ledger, fanout: Fanout, store: ArtifactStore, quotas: Quotas = DEFAULT_QUOTAS
    ) -> None:
        self.kind = kind
        self.ledger = ledger
        self.database = ledger.database
        self._fanout = fanout
        self._store = store
        self._quotas = quotas

    async def create(self, work: Work, request_id: str, within: Callable[[Decision], Awaitable[None]]) -> Work:
        """Inserts the work with its first attempt, or returns what an earlier call with this request_id inserted.

        `within` runs in the same transaction and raises what refuses the work. Raises AlreadyExists, ResourceExhausted.
        """
        work.request_id = request_id or None
        try:
            async with self.ledger.create(work) as decision:
                await self._quotas.check_new_work(decision.session, work.tenant)
                await within(decision)
                lifecycle.open_attempt(decision, self.kind.plan[0], reason="CREATED")
        except IntegrityError:
            # Another call with the same request_id has inserted it since `earlier`.
            earlier = await self.earlier(work.tenant, request_id, work.request_sha256)
            if earlier is None:
                raise
            return earlier
        return work

    async def earlier(self, tenant: str, request_id: str, digest: str) -> Work | None:
        """Returns the work that this request_id created, if any.

        Raises AlreadyExists if its request had another digest, InvalidArgument for a request_id that is too long.
        """
        if len(request_id) > _MAX_REQUEST_ID:
            raise InvalidArgument(
                "INVALID_REQUEST_ID",
                f"request_id has {len(request_id)} characters, more than {_MAX_REQUEST_ID}.",
                [Violation("request_id", f"at most {_MAX_REQUEST_ID} characters")],
            )
        if not request_id:
            return None
        query = select(Work).where(Work.tenant == tenant, Work.kind == self.kind.name, Work.request_id == request_id)
        async with self.database.read() as session:
            work = (await session.exec(query)).one_or_none()
        if work is not None and work.request_sha256 != digest:
            raise AlreadyExists(
                "REQUEST_ID_REUSED",
                f"request_id {request_id!r} already created {self.kind.noun} {work.id} from another request; use a new "
                "request_id.",
                metadata={f"{self.kind.name.rpartition('_')[2]}_id": work.id},
            )
        return work

    async def find(self, session: AsyncSession, work_id: str, tenant: str, *, lock: bool = False) -> Work:
        """Returns the work. NotFound if there is none of this kind and tenant."""
        query = select(Work).where(Work.id == work_id, Work.tenant == tenant, Work.kind == self.kind.name)
        work = (await session.exec(query.with_for_update() if lock else query)).one_or_none()
        if work is None:
            raise no_such(self.kind, work_id)
        return work

    async def attempts(self, session: AsyncSession, work: Work) -> list[Attempt]:
        """Returns the newest 100 attempts, oldest first."""
        # Not by time: a clock that was set back does not reorder history.
        by_stage = case({stage: number for number, stage in enumerate(self.kind.plan)}, value=col(Attempt.stage))
        newest = select(Attempt).where(Attempt.work_id == work.id)
        newest = newest.order_by(by_stage.desc(), col(Attempt.attempt).desc())
        return list(reversed((await session.exec(newest.limit(_MAX_ATTEMPTS_SHOWN))).all()))

    async def delete(self, work_id: str, tenant: str) -> None:
        """Deletes work that has ended, its history and its artifacts; with a job, what was made of its model too.

        If the gateway ends meanwhile, a part of the history may be missing until the call is repeated.
        """
        await finished(self._delete(work_id, tenant))

    async def _delete(self, work_id: str, tenant: str) -> None:
        async with self.database.write() as session:
            doomed = await self._ended(session, work_id, tenant, lock=True)
            for each in doomed:
                each.deleting = True
            ids = [each.id for each in doomed]
        # What has ended gets no new events, and what is deleted no new dependents.
        await self._delete_history(ids)
        async with self.database.write() as session:
            doomed = await self._ended(session, work_id, tenant, lock=True)
            ids = [each.id for each in doomed]
            for table in (Attempt, Delivery, WorkEvent, Metric, SavedCheckpoint, SavedArtifact, SavedResult):
                await session.exec(delete(table).where(col(table.work_id).in_(ids)))
            for each in doomed:
                await session.delete(each)
                await session.flush()
        # After the rows: an artifact without a row is waste, a row without its artifact would be a lie.
        for each_id in ids:
            await in_thread(self._store.delete, f"{tenant}/jobs/{each_id}")

    async def _ended(self, session: AsyncSession, work_id: str, tenant: str, *, lock: bool = False) -> list[Work]:
        """Returns what was made of the work's model, and the work. NotFound, FailedPrecondition if some has not
        ended."""
        work = await self.find(session, work_id, tenant, lock=lock)
        query = select(Work).where(Work.job_id == work.id)
        dependents = (await session.exec(query.with_for_update() if lock else query)).all()
        for each in (found := [*dependents, work]):
            _refuse_unended(each)
        await _refuse_if_started_from(session, work)
        if work.kind == FINE_TUNING_JOB.name:
            await _refuse_if_judging(session, work)
        return found

    async def _delete_history(self, ids: Sequence[str]) -> None:
        """Deletes events and metrics. All at once, those of a long job would stop every other call that writes."""
        for table in (Metric, WorkEvent):
            key = inspect(table).primary_key
            some = select(*key).where(col(table.work_id).in_(ids)).limit(_ROWS_AT_ONCE)
            deleted = _ROWS_AT_ONCE
            while deleted == _ROWS_AT_ONCE:
                async with self.database.write() as session:
                    deleted = (await session.exec(delete(table).where(tuple_(*key).in_(some)))).rowcount

    def watch(
        self, work_id: str, tenant: str, after_sequence: int, kinds: Sequence[str], min_severity: int
    ) -> AsyncIterator[bytes]:
        """Yields serialised responses: the servicer registers the method without a serialiser."""
        _check_cursor(after_sequence)
        selected, severity = _checked_kinds(kinds), _checked_severity(min_severity)
        return self._fanout.watch(
            self.kind, work_id, tenant, after_sequence, selected, severity, _WATCH_HEARTBEAT_SECONDS
        )

    async def events(
        self, work_id: str, tenant: str, after_sequence: int, kinds: Sequence[str], page_size: int
    ) -> tuple[list[Event], int]:
        """Returns a page of events and the cursor of the next page."""
        _check_cursor(after_sequence)
        selected = _checked_kinds(kinds)
        if not 0 <= page_size <= MAX_PAGE_SIZE:
            message = f"is {page_size}; it must be from 1 to {MAX_PAGE_SIZE:,}; 0 means {_EVENTS_PAGE_SIZE}"
            raise InvalidArgument("INVALID_PAGE_SIZE", f"page_size {message}.", [Violation("page_size", message)])
        size = page_size or _EVENTS_PAGE_SIZE
        query = select(WorkEvent).where(WorkEvent.work_id == work_id, WorkEvent.sequence > after_sequence)
        if selected:
            query = query.where(col(WorkEvent.kind).in_(selected))
        async with self.database.read() as session:
            work = await self.find(session, work_id, tenant)
            check_within(self.kind, work.id, after_sequence, work.last_sequence)
            rows = (await session.exec(query.order_by(col(WorkEvent.sequence)).limit(size))).all()
        frames = first_bytes([frame_of_stored(row.event) for row in rows])
        complete = len(frames) == len(rows) < size
        through = work.last_sequence if complete else frames[-1].sequence
        return [Event.FromString(row.event) for row in rows[: len(frames)]], through


def request_digest(*messages: Message) -> str:
    """Identifies the content of a request, to compare calls with one request_id."""
    digest = hashlib.sha256()
    for message in messages:
        digest.update(message.SerializeToString(deterministic=True))
    return digest.hexdigest()


def state_names(states: Sequence[int]) -> list[str]:
    """Returns the names of the states in a filter. InvalidArgument for an unknown one."""
    unknown = [state for state in states if state not in JobState.values() or not state]
    if unknown:
        raise InvalidArgument(
            "INVALID_STATE", f"{unknown[0]} is not a state.", [Violation("states", f"unknown value {unknown[0]}")]
        )
    return [JobState.Name(state) for state in states]


def _refuse_unended(work: Work) -> None:
    if work.state in lifecycle.TERMINAL:
        return
    state = work.state.removeprefix("JOB_STATE_")
    way = "wait until it has ended" if state == "CANCELLING" else "cancel it first"
    noun = KINDS[work.kind].noun
    raise FailedPrecondition("NOT_ENDED", f"The {noun} {work.id} is {state} and cannot be deleted; {way}.")


async def _refuse_if_started_from(session: AsyncSession, work: Work) -> None:
    """Raises FailedPrecondition if a training that has not ended starts from the work's adapter."""
    query = select(Work.id).where(
        Work.start_job_id == work.id, col(Work.training).is_(None), col(Work.state).not_in(lifecycle.TERMINAL)
    )
    users = (await session.exec(query.order_by(Work.id))).all()
    if users:
        more = f" and {len(users) - 1} more" if len(users) > 1 else ""
        trains = users[0].startswith(FINE_TUNING_JOB.prefix)
        what = "starts from the adapter" if trains else "compares with the model"
        raise FailedPrecondition(
            "MODEL_IN_USE",
            f"{users[0]}{more} {what} of job {work.id}; wait until it has ended, or cancel it.",
            metadata={"job_id": users[0]},
        )


async def _refuse_if_judging(session: AsyncSession, job: Work) -> None:
    """Raises FailedPrecondition if the model of the job grades the answers of work that has not ended."""
    query = select(Work).where(Work.tenant == job.tenant, col(Work.state).not_in(lifecycle.TERMINAL))
    users = [
        work
        for work in (await session.exec(query.order_by(Work.id))).all()
        if job.id in judging_jobs(views.evaluation_settings(work))
    ]
    if users:
        more = f" and {len(users) - 1} more" if len(users) > 1 else ""
        raise FailedPrecondition(
            "MODEL_IN_USE",
            f"{users[0].id}{more} has its answers graded by the model of job {job.id}; wait until it has ended, or "
            "cancel it.",
            metadata={"job_id": users[0].id},
        )


def _checked_kinds(kinds: Sequence[str]) -> frozenset[str]:
    unknown = sorted(set(kinds) - _KINDS)
    if unknown:
        known = ", ".join(sorted(_KINDS - {UNKNOWN_KIND}))
        raise InvalidArgument(
            "INVALID_KIND",
            f"There is no such kind of event: {', '.join(unknown)}. Kinds: {known}.",
            [Violation(f"kinds[{list(kinds).index(kind)}]", f"unknown kind {kind!r}") for kind in unknown],
        )
    return frozenset(kinds)


def _checked_severity(severity: int) -> int:
    if severity not in Severity.values():
        message = f"{severity} is not a severity."
        raise InvalidArgument("INVALID_SEVERITY", message, [Violation("min_severity", message)])
    return severity


def _check_cursor(after_sequence: int) -> None:
    if after_sequence < 0:
        raise InvalidArgument(
            "INVALID_CURSOR",
            f"after_sequence is {after_sequence}; it cannot be negative.",
            [Violation("after_sequence", "0 or greater")],
        )
