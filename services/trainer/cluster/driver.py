"""Runs one attempt at a training on a Ray cluster: `python -m services.trainer.cluster.driver driver.json`.

Ray Train starts a worker for each process of the training, on nodes with room; rank.py is what they do. The driver
relays the events of the first process, tells it of a pause, and says how the attempt ended. It is not confined, because
Ray needs the network: it runs neither data nor models of users.
"""

import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError

# TorchTrainer is this class with a process group in Ray's own worker; the trainer's child makes its own.
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from chassis.child import out_of_memory
from chassis.child.pipe import SEE_LAST_OUTPUT, Cancelled, EventSink, Paused, run_child
from engine.errors import SystemFailure
from finetuneflow.v1.event_pb2 import Event, Phase, StageFailed
from finetuneflow.v1.fine_tuning_job_pb2 import FAULT_SYSTEM_ERROR
from services.trainer.cluster import rank
from services.trainer.cluster.messages import Began, DriverInput, Exited, Message
from services.trainer.worker.launch import Ended, cause_of

_MAX_EVENTS: Final = 1000
"""Events on the way from the first process; while there are more, it waits."""
_EXIT_SECONDS: Final = 60.0
"""Time that the other processes have to exit once the first one has ended well."""
_RETRIED: Final = "The job is retried if attempts are left."


class _Fit(threading.Thread):
    """Ray Train's run."""

    def __init__(self, trainer: DataParallelTrainer) -> None:
        super().__init__(name="fit", daemon=True)
        self._trainer = trainer
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # noqa: BLE001 - becomes the event that ends the attempt
            self.error = error


class Driver:
    """One attempt, until its processes have ended."""

    def __init__(self, given: DriverInput, sink: EventSink) -> None:
        self._given, self._sink = given, sink
        self._began: dict[int, Began] = {}
        self._exited: dict[int, Exited] = {}

    def run(self) -> None:
        """Runs the processes and emits how they ended. Raises SystemFailure, Paused or Cancelled."""
        given = self._given
        with self._sink.ticking():
            try:
                ray.init(given.address, log_to_driver=False, logging_level="WARNING")
            except ConnectionError as error:
                silent = f"The Ray cluster at {given.address} does not answer: {_first_line(error)}"
                raise SystemFailure("MACHINE_FAILED", silent, f"Ask the operator about it. {_RETRIED}") from error
            # On this node, so that nothing is lost with another one.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            options = {"num_cpus": 0, "scheduling_strategy": here}
            events, requests = Queue(_MAX_EVENTS, actor_options=options), Queue(actor_options=options)
        trainer = DataParallelTrainer(
            rank.run,
            train_loop_config={"given": given, "events": events, "requests": requests},
            scaling_config=ScalingConfig(
                num_workers=given.world_size, use_gpu=given.on_gpus, resources_per_worker=_resources(given)
            ),
            # The next attempt goes on from the last accepted checkpoint, which Ray does not know.
            run_config=RunConfig(
                name="run",
                storage_path=str(given.workdir / "ray"),
                failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
            ),
        )
        detail = f"{given.world_size} processes of the Ray cluster at {given.address}"
        self._sink.emit(Phase(name="waiting_for_nodes", detail=detail))
        fit = _Fit(trainer)
        fit.start()
        for message in self._messages(fit, events, requests):
            if isinstance(message, Began):
                self._began[message.number] = message
            elif isinstance(message, Exited):
                self._exited[message.number] = message
            elif message:
                self._emit(Event.FromString(message))
            else:
                self._sink.tick()
        self._end(fit.error)

    def _messages(self, fit: _Fit, events: Queue, requests: Queue) -> Iterator[Message]:
        """Yields what the processes send, until all have ended and everything is read. Obeys requests meanwhile."""
        told, deadline = False, float("inf")
        while time.monotonic() < deadline:
            # Everything was sent before its end.
            over = not fit.is_alive()
            try:
                yield events.get(timeout=1.0)
            except queue.Empty:
                if over:
                    return
            waiting = len(self._began) < self._given.world_size
            if waiting:
                # For nodes with room, for as long as that takes.
                self._sink.tick()
            if self._sink.requested() == "cancel":
                raise Cancelled
            if self._sink.requested() == "pause" and not told:
                if waiting:
                    raise Paused
                requests.put("pause")
                told = True
            if deadline == float("inf") and (first := self._exited.get(0)) and not _ended(first).failed:
                deadline = time.monotonic() + _EXIT_SECONDS

    def _emit(self, event: Event) -> None:
        kind = event.WhichOneof("payload")
        assert kind  # noqa: S101
        self._sink.emit(getattr(event, kind), event.severity)

    def _end(self, error: Exception | None) -> None:
        first = self._exited.get(0)
        if first and (event := _ended(first).ending) and not event.HasField("stage_failed"):
            self._emit(event)
            return
        lost = {number: failure for number, failure in _failures(error).items() if number not in self._exited}
        over = [_ended(each) for each in self._exited.values()]
        # A lost process is one that was killed.
        over += [Ended(number, -9, None) for number in lost]
        if not any(each.failed for each in over):
            said = f"Ray Train failed: {_first_line(error)}"
            if out_of_memory.RAY_SAYS in str(error):
                raise SystemFailure("HOST_OUT_OF_MEMORY", said, out_of_memory.ADVICE) from error
            raise SystemFailure("CRASHED", said, SEE_LAST_OUTPUT) from error
        cause = cause_of(over)
        if cause.number in lost:
            self._emit_failure(*self._loss(cause.number, lost[cause.number]))
            return
        exited = self._exited[cause.number]
        if cause.ending is None:
            self._emit_failure(*self._exit(cause, exited), exited.last_lines)
            return
        failed = cause.ending.stage_failed
        if not failed.last_lines:
            failed.last_lines[:] = exited.last_lines
        self._sink.emit(failed)

    def _emit_failure(self, reason: str, message: str, advice: str, last_lines: Sequence[str] = ()) -> None:
        failed = StageFailed(fault=FAULT_SYSTEM_ERROR, reason=reason, message=message, advice=advice)
        failed.last_lines[:] = last_lines
        self._sink.emit(failed)

    def _exit(self, cause: Ended, exited: Exited) -> tuple[str, str, str]:
        """Returns reason, message and advice of a process that ended without saying how."""
        message = f"{self._name(cause.number)} {cause.how()}."
        if cause.status == -9 and exited.out_of_memory:
            return "HOST_OUT_OF_MEMORY", f"{message} Memory ran out there.", out_of_memory.ADVICE
        if cause.status < 0:
            return "KILLED", message, f"Ask the operator for the kernel log of that node. {_RETRIED}"
        return "CRASHED", message, SEE_LAST_OUTPUT

    def _loss(self, number: int, failure: Exception) -> tuple[str, str, str]:
        """Returns reason, message and advice of a process that ended with its worker of Ray."""
        advice = f"Ask the operator to look at Ray's logs of that node. {_RETRIED}"
        if out_of_memory.RAY_SAYS in str(failure):
            message = f"{self._name(number)} was ended by Ray because memory ran out there."
            return "HOST_OUT_OF_MEMORY", message, out_of_memory.ADVICE
        began = self._began.get(number)
        if began and began.node_id not in {node["NodeID"] for node in ray.nodes() if node["Alive"]}:
            message = f"The Ray cluster lost the node {began.address}, and with it {_process(number, self._given)}."
            return "MACHINE_FAILED", message, advice
        return "KILLED", f"{self._name(number)} was lost with its worker of Ray.", advice

    def _name(self, number: int) -> str:
        began = self._began.get(number)
        where = f" on node {began.address}" if began else ""
        name = f"{_process(number, self._given)}{where}"
        return name[0].upper() + name[1:]


def _process(number: int, given: DriverInput) -> str:
    return f"process {number + 1} of {given.world_size}"


def _resources(given: DriverInput) -> dict[str, float]:
    return {"CPU": given.threads, **({"GPU": 1} if given.on_gpus else {})}


def _ended(exited: Exited) -> Ended:
    return Ended(exited.number, exited.status, Event.FromString(exited.ending) if exited.ending else None)


def _failures(error: Exception | None) -> dict[int, Exception]:
    return dict(error.worker_failures) if isinstance(error, WorkerGroupError) else {}


def _first_line(error: Exception | None) -> str:
    return str(error).split("\n")[0][:1000]


def main(sink: EventSink, input_path: Path) -> None:
    """Runs the attempt that the file describes."""
    Driver(DriverInput.model_validate_json(input_path.read_bytes()), sink).run()


if __name__ == "__main__":
    # Ray would report statistics to its makers otherwise.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    run_child(main)
