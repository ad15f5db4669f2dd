"""For any operations, in any order and concurrency, work of every kind behaves like the model."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from chassis.store.artifact_store import ArtifactStore
from gateway.sql.database import Database
from gateway.work.kinds import EVALUATION, EXPORT, FINE_TUNING_JOB, Kind
from tests.gateway.conftest import Recorder
from tests.gateway.job_model import ENDED, Claim, Expire, Gateway, Operation, Pair, Report, Token, Verb

Make = Callable[[Callable[[st.SearchStrategy[Any]], Any]], Operation]


def small(largest: int) -> st.SearchStrategy[int]:
    return st.integers(1, largest)


LOGS = st.tuples(st.just("log"), small(20))
CHECKPOINTS = st.tuples(st.just("checkpoint"), small(20), st.booleans())
RESTORED = st.tuples(st.just("restored"), small(20))
CONFIGS = st.tuples(st.just("config"), small(7), st.sampled_from([1, 3, 200, 1024]), small(4))
FAILURES = st.tuples(
    st.just("failed"), st.sampled_from(["KILLED", "CUDA_OUT_OF_MEMORY", "HOST_OUT_OF_MEMORY", "BAD_DATA"])
).flatmap(lambda failed: st.just((*failed, failed[1] == "BAD_DATA")))
WORK = st.sampled_from([FINE_TUNING_JOB] * 4 + [EVALUATION, EXPORT])
OTHER_ENDINGS = st.sampled_from([("released",), ("released",), ("garbage",), ("foreign",), ("failed", "KILLED", True)])


class JobMachine(RuleBasedStateMachine):
    """One work at a time; the next one is made when it has ended."""

    run: Callable[[Any], Any]
    gateways: tuple[Gateway, Gateway]
    recorder: Recorder

    def __init__(self) -> None:
        super().__init__()
        self.pair: Pair
        self.claims: list[Claim] = []

    @initialize(max_attempts=small(4), config=CONFIGS, preflight_too=st.booleans(), kind=WORK)
    def create(self, max_attempts: int, config: Token, preflight_too: bool, kind: Kind = FINE_TUNING_JOB) -> None:
        self.pair = self.run(Pair.create(self.gateways, self.recorder, max_attempts, kind))
        self.claims.clear()
        if kind is FINE_TUNING_JOB and not preflight_too:
            # Most of what can happen happens in training.
            self.claimed_by_a_new_worker()
            self.a_stage_completed(config)
            self.claimed_by_a_new_worker()

    def do(self, *operations: Operation) -> None:
        self.run(self.pair.do(*operations))
        self.claims += [each for each in operations if isinstance(each, Claim) and each not in self.claims]
        if not self.pair.certain:
            # Hypothesis cannot repeat the order of a race, so its next steps must not depend on the outcome.
            self.create(3, ("config", 4, 1, 2), preflight_too=False)

    @property
    def holder(self) -> Claim | None:
        """Returns the current claim."""
        mine = self.pair.model.open
        return Claim(mine.stage, mine.number, mine.claim_id) if mine and mine.claim_id else None

    def next_report(self, *tokens: Token) -> Report:
        """Returns a report of the next events of the current claim."""
        mine = self.pair.model.open
        assert mine is not None
        assert self.holder is not None
        return Report(self.holder, mine.next_ordinal, tokens)

    @property
    def claimed(self) -> bool:
        return self.holder is not None

    @property
    def over(self) -> bool:
        return self.pair.model.deleted or self.pair.model.state in ENDED

    @property
    def waiting(self) -> bool:
        return self.pair.model.open is not None and not self.claimed

    def a_claim(self, data: st.DataObject) -> Claim:
        """Returns the claim of a new worker, of the holder that lost the answer, or of an old work item."""
        mine = self.pair.model.open
        name = f"{len(self.claims):032x}"
        choices = [Claim(mine.stage, mine.number, name)] if mine else []
        # A claim id is never used for two attempts: that of the old item is its own, also when both are sent at once.
        old = Claim("TRAINING", 9, "f" + name[1:])
        return data.draw(st.sampled_from([*choices, *self.claims, old][:6]))

    def a_report(self, data: st.DataObject, tokens: tuple[Token, ...]) -> Report:
        """Returns a report of the holder or an expired claim, with new or repeated events, or events after a hole."""
        claim = data.draw(st.sampled_from([self.holder or self.claims[-1], *self.claims[-2:]]))
        mine = self.pair.model.open
        next_ordinal = mine.next_ordinal if mine and mine.claim_id == claim.claim_id else 0
        first = max(0, next_ordinal + data.draw(st.sampled_from([0, 0, 0, 0, -1, -2, 1])))
        return Report(claim, first, tokens)

    def progress(self, data: st.DataObject) -> tuple[Token, ...]:
        training = self.pair.model.stage == "TRAINING"
        if not training:
            return tuple(data.draw(st.lists(LOGS, max_size=2)))
        tokens = st.one_of(CHECKPOINTS, CHECKPOINTS, CHECKPOINTS, LOGS, RESTORED, CONFIGS)
        return tuple(data.draw(st.lists(tokens, max_size=6)))

    def an_operation(self, data: st.DataObject) -> Operation:
        kinds = ["cancel", "pause", "resume", "claim"]
        if self.claims:
            kinds += ["progress", "progress", "end", "complete", "expire"]
        if self.over:
            kinds += ["delete"]
        match data.draw(st.sampled_from(kinds)):
            case "claim":
                return self.a_claim(data)
            case "progress":
                return self.a_report(data, self.progress(data))
            case "complete":
                return self.a_report(data, (("completed",),))
            case "end":
                return self.a_report(data, (*self.progress(data), data.draw(st.one_of(FAILURES, OTHER_ENDINGS))))
            case "expire":
                return self.an_expiry(data)
            case verb:
                return self.verb(verb)

    def verb(self, name: Any) -> Verb:
        """Returns the verb if the job's kind has it: only fine-tuning jobs are paused and resumed."""
        pausable = self.pair.job_id.startswith(FINE_TUNING_JOB.prefix)
        return Verb(name if pausable or name == "delete" else "cancel")

    def an_expiry(self, data: st.DataObject) -> Expire:
        """Returns an expiry that observed the last beat, an older beat, or the beat of an older claim."""
        mine = self.pair.model.open
        claim = data.draw(st.sampled_from([self.holder or self.claims[-1], self.claims[0]]))
        beat = mine.beat if mine and mine.claim_id == claim.claim_id else 0
        return Expire(claim.claim_id, max(0, beat - data.draw(st.sampled_from([0, 0, 1]))))

    @precondition(lambda self: self.over)
    @rule(max_attempts=small(4), config=CONFIGS, preflight_too=st.booleans(), kind=WORK)
    def another_work(self, max_attempts: int, config: Token, preflight_too: bool, kind: Kind) -> None:
        self.create(max_attempts, config, preflight_too, kind)

    @precondition(lambda self: self.waiting)
    @rule()
    def claimed_by_a_new_worker(self) -> None:
        mine = self.pair.model.open
        assert mine is not None
        self.do(Claim(mine.stage, mine.number, f"{len(self.claims):032x}"))

    @rule(data=st.data())
    def claimed_by_anybody(self, data: st.DataObject) -> None:
        self.do(self.a_claim(data))

    @precondition(lambda self: self.claimed)
    @rule(data=st.data())
    def a_heartbeat_or_progress(self, data: st.DataObject) -> None:
        self.do(self.next_report(*self.progress(data)))

    @precondition(lambda self: self.claimed and self.pair.model.stage == "TRAINING")
    @rule(saved=st.lists(CHECKPOINTS, min_size=2, max_size=6))
    def checkpoints_written(self, saved: list[Token]) -> None:
        self.do(self.next_report(*saved))

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def a_report_of_anybody(self, data: st.DataObject) -> None:
        self.do(self.a_report(data, self.progress(data)))

    @precondition(lambda self: self.claimed)
    @rule(config=CONFIGS)
    def a_stage_completed(self, config: Token) -> None:
        self.do(self.next_report(config if self.pair.model.stage == "PREFLIGHT" else ("log", 1), ("completed",)))

    @precondition(lambda self: self.claimed)
    @rule(data=st.data(), ending=st.one_of(FAILURES, OTHER_ENDINGS), after=st.lists(LOGS, max_size=1))
    def an_attempt_ended(self, data: st.DataObject, ending: Token, after: list[Token]) -> None:
        self.do(self.a_report(data, (*self.progress(data), ending, *after)))

    @precondition(lambda self: self.claimed and self.pair.model.stage == "TRAINING")
    @rule(reason=st.sampled_from(["CUDA_OUT_OF_MEMORY", "HOST_OUT_OF_MEMORY"]))
    def memory_ran_out(self, reason: str) -> None:
        self.do(self.next_report(("failed", reason, False)))

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def a_lease_expired(self, data: st.DataObject) -> None:
        self.do(self.an_expiry(data))

    @precondition(lambda self: self.claimed)
    @rule(name=st.sampled_from(["pause", "cancel"]), ending=st.one_of(FAILURES, OTHER_ENDINGS, st.just(("completed",))))
    def asked_to_stop(self, name: Any, ending: Token) -> None:
        self.do(self.verb(name))
        self.do(self.next_report(ending))

    @rule(data=st.data())
    def a_verb(self, data: st.DataObject) -> None:
        # One that changes nothing, or everything, is of little interest most of the time.
        held = self.pair.model.state in ("PAUSED", "PAUSING")
        usual = ["resume", "resume", "resume", "pause"] if held else ["pause", "pause", "resume"]
        self.do(self.verb(data.draw(st.sampled_from([*usual, "delete" if self.over else "cancel"]))))

    @rule(data=st.data())
    def two_at_once(self, data: st.DataObject) -> None:
        self.do(self.an_operation(data), self.an_operation(data))

    @precondition(lambda self: self.claimed)
    @rule(data=st.data())
    def three_at_once(self, data: st.DataObject) -> None:
        self.do(*(self.an_operation(data) for _ in range(3)))


@pytest.fixture(params=["sqlite", "postgresql"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[int, int], None]]:
    """Runs the given number of jobs and steps on two gateways, on PostgreSQL with separate connections."""
    with asyncio.Runner() as runner:
        if request.param == "sqlite":
            databases = [runner.run(Database.open(f"sqlite:///{tmp_path / 'gateway.sqlite'}"))] * 2
        else:
            url = request.getfixturevalue("postgres").url
            databases = [runner.run(Database.open(url)) for _ in range(2)]
        recorder = Recorder()
        store = ArtifactStore(f"file://{tmp_path / 'artifacts'}")
        gateways = [Gateway(database, recorder, store) for database in databases]
        machine = type(
            "Machine", (JobMachine,), {"run": staticmethod(runner.run), "gateways": gateways, "recorder": recorder}
        )

        def lives(examples: int, steps: int) -> None:
            run_state_machine_as_test(  # type: ignore[no-untyped-call]
                machine,
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=steps,
                    deadline=None,
                    database=None,
                    # `make test` repeats the same examples on each run; the long run searches new ones.
                    derandomize=examples < 100,
                    suppress_health_check=list(HealthCheck),
                    print_blob=True,
                ),
            )

        yield lives
        for database in set(databases):
            runner.run(database.close())


def test_job_follows_state_machine(run: Callable[[int, int], None]) -> None:
    """Random operations must never skip a stage, end a job twice, or lose a checkpoint."""
    run(6, 30)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_many_jobs_follow_state_machine(run: Callable[[int, int], None]) -> None:
    run(120, 60)
