"""Waiting work starts in an order that is fair among tenants, then by priority, then by age."""

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import pytest

from finetuneflow.v1.fine_tuning_job_pb2 import Stage
from finetuneflow.v1.work_pb2 import ClaimRequest, ClaimResponse, Node, WorkItem
from gateway.identifiers import new_id
from gateway.sql.database import Database
from gateway.sql.tables import Attempt, now
from gateway.waiting import why_it_waits
from gateway.work import lifecycle
from gateway.work.ledger import Ledger
from gateway.work.queue_order import number_before
from gateway.work.worker_requests import WorkerRequests
from tests.fakes.planning import NoTrainers
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import a_job, attempts_of, create

PROBES = ("probe", "default")


class Workers:
    """Claim from one queue as workers do: the broker's item first, and what the gateway names instead of it."""

    def __init__(self, requests: WorkerRequests, queue: tuple[str, str] = PROBES) -> None:
        self._requests = requests
        self._queue = queue

    async def ask(self, item: WorkItem, *, take_next: bool, claim_id: str = "") -> ClaimResponse:
        request = ClaimRequest(
            job_id=item.job_id,
            stage=item.stage,
            attempt=item.attempt,
            claim_id=claim_id or new_id("claim"),
            node_id="node-1",
            take_next=take_next,
        )
        return await self._requests.claim(request, self._queue)

    async def claim(self, item: WorkItem) -> str | None:
        """Returns the job that was granted for an item of the broker; None if nothing waits."""
        answer = await self.ask(item, take_next=True)
        if answer.HasField("instead"):
            answer = await self.ask(answer.instead, take_next=False)
        return answer.assignment.job_id if answer.HasField("assignment") else None


def item_of(attempt: Attempt) -> WorkItem:
    return WorkItem(job_id=attempt.work_id, stage=Stage.Value(attempt.stage), attempt=attempt.attempt)


async def created(ledger: Ledger, recorder: Recorder, tenant: str, number: int = 1, **fields: Any) -> list[WorkItem]:
    """Creates jobs and returns the items that the broker has of them."""
    start = len(recorder.offered)
    for _ in range(number):
        await create(ledger, tenant=tenant, **fields)
    return [item_of(attempt) for attempt in recorder.offered[start:]]


def ids(items: Sequence[WorkItem]) -> list[str]:
    return [item.job_id for item in items]


@pytest.fixture
def workers(acceptance: WorkerRequests) -> Workers:
    return Workers(acceptance)


async def test_first_job_of_a_tenant_is_next_though_another_tenant_has_queued_200(
    ledger: Ledger, recorder: Recorder, workers: Workers
) -> None:
    """Otherwise one sweep of one team would hold up everybody for days."""
    queued = await created(ledger, recorder, "a", 200)
    assert await workers.claim(queued[0]) == queued[0].job_id
    (late,) = await created(ledger, recorder, "b")
    # The broker still delivers the older items first.
    assert await workers.claim(queued[1]) == late.job_id
    # The item of that job stands for the one that was passed over.
    assert await workers.claim(late) == queued[1].job_id


async def test_tenants_take_turns(ledger: Ledger, recorder: Recorder, workers: Workers) -> None:
    queued = [await created(ledger, recorder, tenant, 3) for tenant in ("a", "b", "c")]
    granted = [await workers.claim(item) for items in queued for item in items]
    assert None not in granted
    owner = {item.job_id: number for number, items in enumerate(queued) for item in items}
    turns = [owner[each or ""] for each in granted]
    assert [sorted(turns[start : start + 3]) for start in (0, 3, 6)] == [[0, 1, 2]] * 3


async def test_tenant_whose_jobs_have_ended_is_not_preferred_for_ever(
    ledger: Ledger, recorder: Recorder, workers: Workers
) -> None:
    """With one worker, no tenant holds a claim when it asks: then the one that waits longest since its last is next."""
    queued = [*await created(ledger, recorder, "a", 3), *await created(ledger, recorder, "b", 3)]
    owners = {item.job_id: "a" if number < 3 else "b" for number, item in enumerate(queued)}
    turns = []
    for item in queued:
        granted = await workers.claim(item)
        assert granted is not None
        turns.append(owners[granted])
        async with ledger.decide(granted) as decision:
            assert decision.attempt is not None
            lifecycle.end_attempt(decision, decision.attempt, lifecycle.Completed())
    assert turns in (["a", "b"] * 3, ["b", "a"] * 3)


async def test_higher_priority_is_first_within_its_tenant_only(
    ledger: Ledger, recorder: Recorder, workers: Workers
) -> None:
    low, normal = await created(ledger, recorder, "a", priority=-1), await created(ledger, recorder, "a", 2)
    urgent, other = await created(ledger, recorder, "a", priority=10), await created(ledger, recorder, "b")
    items = [*low, *normal, *urgent, *other]
    granted = [await workers.claim(item) for item in items]
    assert granted[:2] == [urgent[0].job_id, other[0].job_id], "one of each tenant, the urgent one of a"
    assert granted[2:4] == ids(normal)
    assert granted[4] == low[0].job_id


async def test_every_waiting_job_is_claimed_once_whatever_the_order_of_items(
    ledger: Ledger, recorder: Recorder, workers: Workers
) -> None:
    """An item that was acknowledged for another job must not leave its own job behind."""
    items = []
    for number in range(12):
        items += await created(ledger, recorder, "abc"[number % 3], priority=number % 2)
    cancelled = items.pop(5)
    async with ledger.decide(cancelled.job_id) as decision:
        lifecycle.cancel(decision)
    granted = [await workers.claim(item) for item in [cancelled, *reversed(items)]]
    assert sorted(each for each in granted if each) == sorted(ids(items))
    assert await workers.claim(items[0]) is None


async def test_workers_at_two_gateways_claim_every_job_once(
    request: pytest.FixtureRequest, database: Database, ledger: Ledger, recorder: Recorder, acceptance: WorkerRequests
) -> None:
    """They see different moments of the queue: a job must be granted once, and none left without an item."""
    second = database if database.is_sqlite else await Database.open(request.getfixturevalue("postgres").url)
    other = Ledger(second, recorder.publish, recorder.offer, recorder.discard)
    gateways = [Workers(acceptance), Workers(WorkerRequests(other, NoTrainers()))]
    items = []
    for number in range(40):
        items += await created(ledger, recorder, "abc"[number % 3], priority=number % 2)
    undelivered = iter(items)

    async def worker(gateway: Workers) -> list[str]:
        granted = []
        for item in undelivered:
            answer = ClaimResponse()
            while not answer.HasField("assignment"):
                answer = await gateway.ask(item, take_next=True)
                assert not answer.HasField("refused")
                if answer.HasField("instead"):
                    answer = await gateway.ask(answer.instead, take_next=False)
            granted.append(answer.assignment.job_id)
        return granted

    async with asyncio.timeout(60):
        found = await asyncio.gather(*(worker(gateways[number % 2]) for number in range(8)))
    assert sorted(each for granted in found for each in granted) == sorted(ids(items))
    if second is not database:
        await second.close()


async def test_repeated_claim_gets_its_grant_again_and_not_another_job(
    ledger: Ledger, recorder: Recorder, workers: Workers
) -> None:
    """An answer that was lost would otherwise leave a job claimed by nobody until its lease ends."""
    (mine,) = await created(ledger, recorder, "a")
    first = await workers.ask(mine, take_next=True, claim_id="a" * 32)
    await created(ledger, recorder, "b")
    assert await workers.ask(mine, take_next=True, claim_id="a" * 32) == first


async def test_claims_in_order_of_age_are_granted_directly(
    ledger: Ledger, recorder: Recorder, workers: Workers
) -> None:
    """To be sent to another attempt costs time; a queue of one tenant needs it for nothing."""
    for item in await created(ledger, recorder, "a", 3):
        assert (await workers.ask(item, take_next=True)).assignment.job_id == item.job_id


async def test_job_in_back_off_and_jobs_of_other_queues_are_not_next(
    ledger: Ledger, recorder: Recorder, acceptance: WorkerRequests
) -> None:
    async with ledger.create(a_job(tenant="b")) as decision:
        lifecycle.open_attempt(decision, "STAGE_PREFLIGHT", delay=60)
    await created(ledger, recorder, "c", stage="STAGE_TRAINING")
    (mine,) = await created(ledger, recorder, "a")
    await create(ledger, tenant="a")
    async with ledger.database.write() as session:
        for tenant, pool in (("d", "gpu"), ("e", "default")):
            work = a_job(tenant=tenant, pool=pool, stage="STAGE_TRAINING", state="JOB_STATE_QUEUED")
            session.add(work)
            await session.flush()
            values = {"work_id": work.id, "stage": "STAGE_TRAINING", "attempt": 1, "create_time": now()}
            session.add(Attempt(tenant=tenant, pool=pool, **values))
    assert (await Workers(acceptance).claim(mine)) is not None
    trained = await Workers(acceptance, ("trainer", "gpu")).ask(mine, take_next=True)
    assert trained.instead.stage == Stage.STAGE_TRAINING
    granted = await Workers(acceptance, ("trainer", "gpu")).ask(trained.instead, take_next=False)
    assert granted.assignment.tenant == "d"


async def test_number_before_a_job_is_the_number_that_starts_before_it(
    ledger: Ledger, recorder: Recorder, workers: Workers, database: Database
) -> None:
    """A user who reads that 3 are before theirs plans with that."""
    items = [*await created(ledger, recorder, "a", 5), *await created(ledger, recorder, "b", 2)]
    assert await workers.claim(items[0])
    items += [*await created(ledger, recorder, "c", 4), *await created(ledger, recorder, "a", priority=5)]
    promised = {}
    for item in items[1:]:
        (attempt,) = await attempts_of(ledger, item.job_id)
        if attempt.state == "READY":
            async with database.read() as session:
                promised[item.job_id] = await number_before(await session.connection(), attempt)
    granted = [each for item in items if (each := await workers.claim(item))]
    assert [promised[each] for each in granted] == list(range(len(granted)))


async def test_reason_for_waiting_names_what_is_missing(ledger: Ledger, recorder: Recorder) -> None:
    items = await created(ledger, recorder, "a", 2)
    (attempt,) = await attempts_of(ledger, items[1].job_id)

    async def waiting(*nodes: Node, attempt: Attempt = attempt) -> str:
        async def live() -> list[Node]:
            return list(nodes)

        async with ledger.database.read() as session:
            return await why_it_waits(session, attempt, live)

    idle = Node(service="probe", pool="default", slots=2)
    busy = Node(service="probe", pool="default", slots=1)
    busy.runs.add(job_id="x")
    assert await waiting() == (
        "No probe of pool 'default' is running; ask the operator to start one. 1 attempt is before it."
    )
    assert await waiting(busy) == "The slot of the probe of pool 'default' is busy. 1 attempt is before it."
    assert await waiting(Node(service="trainer", pool="default", slots=1)) == await waiting()
    assert await waiting(busy, idle) == "1 attempt is before it."
    (first,) = await attempts_of(ledger, items[0].job_id)
    assert await waiting(idle, attempt=first) == "A probe of pool 'default' is about to take it."
    async with ledger.create(a_job()) as decision:
        lifecycle.open_attempt(decision, "STAGE_PREFLIGHT", delay=60)
    (delayed,) = await attempts_of(ledger, decision.work.id)
    said = re.fullmatch(r"It is tried again in (\d+) s, after its last failure\.", await waiting(idle, attempt=delayed))
    assert said and 0 < int(said[1]) <= 60
