"""Evaluations and exports of trained jobs: created, watched, cancelled and deleted with the generated stubs."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import grpc

from finetuneflow.v1 import evaluation_service_pb2, evaluation_service_pb2_grpc, export_service_pb2
from finetuneflow.v1 import export_service_pb2_grpc as export_service_grpc
from finetuneflow.v1.event_pb2 import Event
from tests.chaos.watchers import GIVE_UP_SECONDS, Source, Watcher

_CALL_SECONDS, _AGAIN_SECONDS = 5.0, 0.1
_STREAM_SECONDS = 20.0
"""A watch is opened again after this time: that of a stopped gateway is silent, and its connection stays open."""
_TICK_SECONDS = 0.05
_REFUSALS = {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT}
_CONNECTION_LOST = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


@dataclass(frozen=True)
class Order:
    """One evaluation or export that a schedule asks for."""

    job: int
    """Index of the job whose model it is about."""
    kind: str
    """evaluation or export."""
    ended: bool
    """False: asked for when the training has finished, so that the job's own stages may run; True: after its end."""
    twice: bool
    """Asked for again with the same request_id."""
    verb: str = ""
    """cancel: after `seconds`; delete: after its end."""
    seconds: float = 0.0

    def __str__(self) -> str:
        after = "its end" if self.ended else "its training"
        verb = f", {self.verb}" + (f" after {self.seconds:.1f} s" if self.verb == "cancel" else "") if self.verb else ""
        return f"   order   {self.kind} of job {self.job} after {after}{' twice' if self.twice else ''}{verb}"


def draw_orders(seed: int, jobs: int, orders_per_job: int) -> tuple[Order, ...]:
    """Draws the orders of a schedule. They do not depend on its faults, nor its faults on them."""
    rng = random.Random(f"{seed} orders")  # noqa: S311 - must come again
    return tuple(
        Order(
            job=job,
            kind=rng.choice(("evaluation", "export")),
            ended=rng.random() < 0.5,
            twice=rng.random() < 0.5,
            verb=rng.choice(("", "", "cancel", "delete")),
            seconds=rng.uniform(0.0, 1.5),
        )
        for job in range(jobs)
        for _ in range(orders_per_job)
    )


class ResultCalls:
    """The methods of EvaluationService or ExportService on several gateways."""

    def __init__(self, kind: str, channels: Sequence[grpc.Channel]) -> None:
        self._kind = kind
        self._noun = kind.capitalize()
        self._messages: ModuleType = evaluation_service_pb2 if kind == "evaluation" else export_service_pb2
        stub: Callable[[grpc.Channel], Any] = (
            evaluation_service_pb2_grpc.EvaluationServiceStub
            if kind == "evaluation"
            else export_service_grpc.ExportServiceStub
        )
        self._stubs = [stub(channel) for channel in channels]

    def create(self, number: int, model: str, request_id: str) -> str:
        """Returns the id. Raises grpc.RpcError."""
        created = self._call(number, "Create", model=model, request_id=request_id)
        return str(getattr(created, self._kind).id)

    def get(self, number: int, result_id: str) -> Any:
        return getattr(self._call(number, "Get", **self._named(result_id)), self._kind)

    def cancel(self, number: int, result_id: str) -> None:
        self._call(number, "Cancel", **self._named(result_id))

    def delete(self, number: int, result_id: str) -> None:
        self._call(number, "Delete", **self._named(result_id))

    def sources(self) -> list[Source]:
        """Returns a watch per gateway; a lost connection is opened again with the cursor."""
        return [self._source(number) for number in range(len(self._stubs))]

    def _source(self, number: int) -> Source:
        request = getattr(self._messages, f"Watch{self._noun}Request")
        watch = getattr(self._stubs[number], f"Watch{self._noun}")

        def events(result_id: str, cursor: int, /) -> Generator[Event]:
            give_up = time.monotonic() + GIVE_UP_SECONDS
            while True:
                asked = request(**self._named(result_id), after_sequence=cursor)
                try:
                    for response in watch(asked, timeout=_STREAM_SECONDS):
                        for event in response.events:
                            cursor = event.sequence
                            yield event
                    # A gateway ends a watch by itself only after the last event, also if the cursor is there already.
                    return
                except grpc.RpcError as error:
                    if error.code() not in _CONNECTION_LOST or time.monotonic() > give_up:
                        raise
                time.sleep(_AGAIN_SECONDS)

        return events

    def _named(self, result_id: str) -> dict[str, str]:
        return {f"{self._kind}_id": result_id}

    def _call(self, number: int, verb: str, **fields: str) -> Any:
        request = getattr(self._messages, f"{verb}{self._noun}Request")(**fields)
        stub = self._stubs[number % len(self._stubs)]
        return getattr(stub, f"{verb}{self._noun}")(request, timeout=_CALL_SECONDS)


@dataclass
class Ordered:
    """An order, carried out in a thread from its job's training to its own end, and what came of it."""

    order: Order
    job: Watcher
    """The steady watcher of the job."""
    calls: ResultCalls
    request_id: str
    rng: random.Random
    give_up: threading.Event
    """Set when the schedule waits no longer."""
    result_id: str = ""
    """Empty if the job ended untrained."""
    cancel: str = ""
    """Result of the cancel request: accepted, refused or unknown."""
    deleted: str = ""
    """Result of the delete request: accepted, refused or unknown."""
    watchers: list[Watcher] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Errors that no caller should receive."""
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=self.request_id, daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        return self._thread is not None and not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._carry_out()
        except Exception as error:  # noqa: BLE001 - what a user would see; the checker reports it
            self.problems.append(f"{self.order}: {type(error).__name__}: {error}")

    def _carry_out(self) -> None:
        if not self._until(lambda: self.job.ended or (self.job.trained and not self.order.ended)):
            return
        model = f"ft:{self.job.work_id}"
        if not self._create(model):
            return
        sources = self.calls.sources()
        self.watchers = [
            Watcher("steady", sources[:1], self.result_id, random.Random(self.rng.random())),  # noqa: S311
            Watcher("hopping", sources, self.result_id, random.Random(self.rng.random()), hop_after=3),  # noqa: S311
        ]
        if self.order.twice:
            again = self._answer(lambda number: self.calls.create(number, model, self.request_id))
            if again != self.result_id:
                self.problems.append(f"{self.request_id} created {self.result_id}, and then {again}")
        if self.order.verb == "cancel":
            time.sleep(self.order.seconds)
            # Until an answer is known, both ends are right.
            self.cancel = "unknown"
            self.cancel = self._verb(self.calls.cancel)
            if self.cancel == "accepted" and self._verb(self.calls.cancel) == "refused":
                self.problems.append(f"cancelling {self.result_id} twice was refused")
        if self._until(lambda: all(watcher.ended for watcher in self.watchers)) and self.order.verb == "delete":
            self.deleted = "unknown"
            self.deleted = self._verb(self.calls.delete)

    def _create(self, model: str) -> bool:
        """Creates it as a caller without a response does: again, with the same request_id. False: no training ended."""
        number = 0
        while not self.give_up.is_set():
            last = self.job.ended
            try:
                self.result_id = self.calls.create(number, model, self.request_id)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION and last:
                    return False
                if error.code() in _REFUSALS - {grpc.StatusCode.FAILED_PRECONDITION}:
                    raise
                # The stage's last event is reported after `complete`; a job that lost its worker trains again.
                time.sleep(_AGAIN_SECONDS)
                number += 1
            else:
                return True
        self.problems.append(f"{self.request_id}: nobody answered its creation")
        return False

    def _answer(self, ask: Callable[[int], str]) -> str:
        """Calls the gateways in turn until one answers; "" if none does. Raises grpc.RpcError if one refuses."""
        number = 0
        while not self.give_up.is_set():
            try:
                return ask(number)
            except grpc.RpcError as error:
                if error.code() in _REFUSALS:
                    raise
            time.sleep(_AGAIN_SECONDS)
            number += 1
        return ""

    def _verb(self, ask: Callable[[int, str], None]) -> str:
        """Returns accepted, refused, or unknown if no answer arrived, or only to a repeated request."""
        lost = False
        number = 0
        while not self.give_up.is_set():
            try:
                ask(number, self.result_id)
            except grpc.RpcError as error:
                if error.code() in _REFUSALS:
                    return "unknown" if lost else "refused"
                lost = True
            else:
                return "accepted"
            time.sleep(_AGAIN_SECONDS)
            number += 1
        return "unknown"

    def _until(self, done: Callable[[], bool]) -> bool:
        """Waits for a condition. False if the schedule gives up before."""
        while not done():
            if self.give_up.wait(_TICK_SECONDS):
                return False
        return True
