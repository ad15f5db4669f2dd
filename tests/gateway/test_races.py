"""Two concurrent requests at two gateways have the result of running them one after the other."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chassis.store.artifact_store import ArtifactStore
from gateway.sql.database import Database
from tests.gateway.conftest import Recorder
from tests.gateway.job_model import STAGES, Claim, Expire, Gateway, Operation, Pair, Report, Verb

ROUNDS = 4
CONFIG = ("config", 4, 1, 2)
COMPLETED = Report(Claim("TRAINING", 1, "training"), 0, (("completed",),))


@pytest.fixture
async def gateways(
    request: pytest.FixtureRequest, database: Database, recorder: Recorder, tmp_path: Path
) -> AsyncIterator[list[Gateway]]:
    """On PostgreSQL they share nothing but the server."""
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    second = database if database.is_sqlite else await Database.open(request.getfixturevalue("postgres").url)
    yield [Gateway(each, recorder, store) for each in (database, second)]
    if second is not database:
        await second.close()


async def in_stage(gateways: list[Gateway], recorder: Recorder, stage: str, *, claimed: bool = True) -> Pair:
    """A job whose `stage` is held by the claim of that name in lower case."""
    pair = await Pair.create(gateways, recorder, 3)
    for each in STAGES[: STAGES.index(stage)]:
        claim = Claim(each, 1, each.lower())
        await pair.do(claim)
        await pair.do(Report(claim, 0, ((CONFIG,) if each == "PREFLIGHT" else ()) + (("completed",),)))
    if claimed:
        await pair.do(Claim(stage, 1, stage.lower()))
    return pair


TRAINING = Claim("TRAINING", 1, "training")
LAST = Claim("EXPORT", 1, "export")
RELEASED = Report(TRAINING, 0, (("released",),))

RACES: dict[str, tuple[Claim, tuple[Operation, ...], tuple[Operation, ...]]] = {
    "resume and the pause it comes too late for": (TRAINING, (Verb("pause"),), (Verb("resume"), RELEASED)),
    "resume and the end of a stage": (TRAINING, (Verb("pause"),), (Verb("resume"), COMPLETED)),
    "cancel and the last completion": (LAST, (), (Verb("cancel"), Report(LAST, 0, (("completed",),)))),
    "cancel and a lease's end": (TRAINING, (), (Verb("cancel"), Expire("training", 0))),
    "pause and a failure": (TRAINING, (), (Verb("pause"), Report(TRAINING, 0, (("failed", "KILLED", False),)))),
    "pause and out of memory": (
        TRAINING,
        (),
        (Verb("pause"), Report(TRAINING, 0, (("failed", "CUDA_OUT_OF_MEMORY", False),))),
    ),
    "cancel and cancel and delete": (TRAINING, (RELEASED,), (Verb("cancel"), Verb("cancel"), Verb("delete"))),
    "a lease's end and a report": (TRAINING, (), (Expire("training", 0), Report(TRAINING, 0, (("log", 1),)))),
    "a lease's end at two gateways": (TRAINING, (), (Expire("training", 0), Expire("training", 0))),
    "a report and the same at another gateway": (
        TRAINING,
        (),
        tuple(Report(TRAINING, 0, (("checkpoint", 1, True), ("checkpoint", 2, False), ("log", 2))) for _ in range(2)),
    ),
    "an ending and the same at another gateway": (TRAINING, (), (COMPLETED, COMPLETED)),
    "a zombie and its heir": (
        TRAINING,
        (
            Report(TRAINING, 0, (("checkpoint", 1, False), ("checkpoint", 2, False))),
            Expire("training", 1),
            Claim("TRAINING", 2, "heir"),
        ),
        (
            Report(TRAINING, 2, tuple(("checkpoint", step, True) for step in (3, 4, 5))),
            Report(Claim("TRAINING", 2, "heir"), 0, (("restored", 2), ("checkpoint", 3, False))),
        ),
    ),
}


@pytest.mark.parametrize("name", RACES)
async def test_concurrent_operations_have_result_of_a_sequential_order(
    gateways: list[Gateway], recorder: Recorder, name: str
) -> None:
    claim, before, racers = RACES[name]
    for turn in range(ROUNDS):
        pair = await in_stage(gateways, recorder, claim.stage)
        for operation in before:
            await pair.do(operation)
        await pair.do(*(racers if turn % 2 else reversed(racers)))


async def test_one_of_many_concurrent_claims_is_granted(gateways: list[Gateway], recorder: Recorder) -> None:
    for _ in range(ROUNDS):
        pair = await in_stage(gateways, recorder, "TRAINING", claimed=False)
        answers = await pair.do(*(Claim("TRAINING", 1, name) for name in "abab"))
        assert sum(answer != "CLAIMED_BY_ANOTHER" for answer in answers) == 2, (
            "only the granted claim and its repetition succeed"
        )
