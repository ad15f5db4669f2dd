"""A process of a training on a node of a Ray cluster: Ray's worker starts the trainer's child there and relays it."""

import collections
import contextlib
import os
import queue
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Final

import psutil
import ray
import ray.train
import ray.util
from google.protobuf.message import Message as Payload
from ray.train.collective import broadcast_from_rank_zero
from ray.util.queue import Queue

from chassis.child.child_process import LAST_LINES, LINGER_SECONDS, WORKDIR, child_environment, oom_kills
from chassis.child.pipe import EventSink
from chassis.events import event_of
from chassis.security.confinement import ChildLimits, Confinement, Files, confined
from finetuneflow.v1.event_pb2 import Severity
from services.trainer.cluster.messages import Began, DriverInput, Exited
from services.trainer.worker.launch import LOCAL_RANK, RANK, REACTION_SECONDS, WORLD_SIZE, Ended, Rank

_LINE_CHARACTERS: Final = 1000


class ProcessFailed(Exception):
    """A process of the training has failed; its driver knows how."""


class _Relay(EventSink):
    """Sends the events of the first process to the driver. Waits while too many are on the way."""

    def __init__(self, events: Queue) -> None:
        super().__init__(None, None)
        self._events = events

    def emit(self, payload: Payload, severity: Severity | None = None) -> None:
        self._events.put(event_of(payload, severity).SerializeToString())

    def tick(self) -> None:
        self._events.put(b"")


def run(config: dict[str, Any]) -> None:
    """Runs one process of a training, in a worker of Ray Train. Raises ProcessFailed.

    `config` has the driver's input (`given`), a queue to the driver (`events`) and one from it (`requests`).
    """
    given: DriverInput = config["given"]
    events: Queue = config["events"]
    context = ray.train.get_context()
    number = context.get_world_rank()
    address = ray.util.get_node_ip_address()
    events.put(Began(number, ray.get_runtime_context().get_node_id(), address))
    environment = _environment(given, number)
    if given.world_size > 1:
        meeting = broadcast_from_rank_zero((address, _free_port(address)) if number == 0 else None)
        environment |= _meeting_place(given, number, address, meeting)
    kills = oom_kills()
    ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
    output = _Output()
    rank = Rank(number, _argv(given, number), environment, ended, folder=given.workdir, output=output.fd)
    output.follow()
    if number == 0:
        threading.Thread(target=_pass_on, args=(config["requests"], rank), name="requests", daemon=True).start()
    rank.follow(_Relay(events) if number == 0 else None)
    over = ended.get()
    ending = over.ending.SerializeToString() if over.ending else None
    events.put(Exited(number, over.status, ending, oom_kills() > kills, output.last_lines()))
    if over.failed:
        # Ray ends the others as soon as this one fails, and one of them may be the cause.
        threading.Event().wait(REACTION_SECONDS)
        raise ProcessFailed(f"process {number + 1} of {given.world_size} {over.how()}")


def _argv(given: DriverInput, number: int) -> list[str]:
    reads = [given.workdir, *given.reads]
    writes = [given.out_dir, _scratch(given, number)]
    if given.on_gpus and given.world_size > 1:
        # NCCL exchanges data between the GPUs of a node through shared memory.
        writes.append(Path("/dev/shm"))  # noqa: S108
    limits = ChildLimits(given.file_bytes, given.memory_bytes)
    confinement = Confinement(limits, Files.of(reads, writes), "ephemeral" if given.world_size > 1 else "none")
    return confined([sys.executable, "-m", "services.trainer.worker", str(given.training_input)], confinement)


def _scratch(given: DriverInput, number: int) -> Path:
    # Below the folder of the attempt, with which it is deleted, however this process ends.
    folder = given.workdir / "scratch" / f"process-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _environment(given: DriverInput, number: int) -> dict[str, str]:
    scratch = str(_scratch(given, number))
    # Ray has chosen the GPUs in this process's environment.
    devices = {} if given.on_gpus else {"CUDA_VISIBLE_DEVICES": ""}
    own = {**given.environment, **devices, WORKDIR: str(given.workdir), "HOME": scratch, "TMPDIR": scratch}
    return child_environment(own)


def _meeting_place(given: DriverInput, number: int, address: str, meeting: tuple[str, int]) -> dict[str, str]:
    """Returns the environment in which torch finds the other processes."""
    # Each process sees its own GPU alone.
    found = {RANK: str(number), LOCAL_RANK: "0", "LOCAL_WORLD_SIZE": "1", WORLD_SIZE: str(given.world_size)}
    found |= {"MASTER_ADDR": meeting[0], "MASTER_PORT": str(meeting[1])}
    # By default gloo takes the address that the host's name stands for, which is often the loopback one.
    chosen = os.environ.get("GLOO_SOCKET_IFNAME", "") or _interface(address)
    return found | ({"GLOO_SOCKET_IFNAME": chosen} if chosen else {})


def _interface(address: str) -> str:
    """Returns the name of the network interface with that address; empty if none has it."""
    name: str
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return name
    return ""


def _free_port(address: str) -> int:
    """Returns an ephemeral port that is free now: a confined child may use no other."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.closing(socket.socket(family)) as found:
        found.bind((address, 0))
        port: int = found.getsockname()[1]
        return port


class _Output:
    """What the child writes: its last lines are kept, and all are passed on to Ray's log."""

    def __init__(self) -> None:
        self._read, self.fd = os.pipe()
        self._lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self._reader = threading.Thread(target=self._follow, name="output", daemon=True)

    def follow(self) -> None:
        """Reads from a thread. Call it once the child has its end."""
        os.close(self.fd)
        self._reader.start()

    def last_lines(self) -> tuple[str, ...]:
        """Returns the last lines of a child that has exited."""
        self._reader.join(LINGER_SECONDS)
        return tuple(self._lines)

    def _follow(self) -> None:
        with os.fdopen(self._read, encoding="utf-8", errors="replace") as output:
            for line in output:
                # A progress bar overwrites its line; only its last state is kept.
                if text := line.rstrip().rsplit("\r", 1)[-1]:
                    self._lines.append(text[:_LINE_CHARACTERS])
                    sys.stdout.write(f"{text}\n")


def _pass_on(requests: Queue, rank: Rank) -> None:
    """Passes requests of the driver on to the first process, which agrees with the others on what to do."""
    while True:
        rank.request(requests.get())
