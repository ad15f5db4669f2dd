"""Starts the processes of a training that compute together (ranks), and is their one voice towards the supervisor.

Each rank is this program again, with the environment variables that torchrun sets (RANK, LOCAL_RANK, WORLD_SIZE) and an
event pipe and a control pipe of its own. torchrun itself passes no pipes on, and starts each rank in a session of its
own, which would outlive the child; a confined child may not do that.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from google.protobuf.proto import parse_length_prefixed

from chassis.child.pipe import CONTROL_FD, EVENT_FD, EventSink
from chassis.events import ENDINGS
from finetuneflow.v1.event_pb2 import Event

RANK: Final = "RANK"
LOCAL_RANK: Final = "LOCAL_RANK"
WORLD_SIZE: Final = "WORLD_SIZE"
RENDEZVOUS: Final = "FTF_RENDEZVOUS"
"""Environment variable with the path of the file through which the ranks of one machine find each other."""
_EXIT_SECONDS: Final = 60.0
"""Time that the other ranks have to exit once the first one has ended well."""
REACTION_SECONDS: Final = 5.0
"""Time that the other ranks have to exit once one has failed: their connections to it break, and one of them may be the
cause that fails a little later."""


@dataclass(frozen=True)
class Ended:
    """How a rank has ended."""

    number: int
    status: int
    """Exit status, negative for a signal."""
    ending: Event | None
    """The event with which it ended, if it could say how."""

    @property
    def failed(self) -> bool:
        return self.ending is None or self.ending.HasField("stage_failed")

    def how(self) -> str:
        """Says in words how its process has exited."""
        if self.status < 0:
            return f"was ended by {signal.Signals(-self.status).name}"
        return f"exited with status {self.status}"


class Rank:
    """A running rank."""

    def __init__(
        self,
        number: int,
        argv: Sequence[str],
        environment: Mapping[str, str],
        ended: "queue.SimpleQueue[Ended]",
        folder: Path | None = None,
        output: int | None = None,
    ) -> None:
        """Starts it in `folder`, and lets it write to the file descriptor `output`; by default both are those of this
        process."""
        self.number = number
        event_read, event_write = os.pipe()
        control_read, self._control = os.pipe()
        # The child dies with the thread that started it: this one.
        self.process = subprocess.Popen(
            argv,
            env={**environment, EVENT_FD: str(event_write), CONTROL_FD: str(control_read)},
            cwd=folder,
            pass_fds=(event_write, control_read),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        os.close(event_write)
        os.close(control_read)
        self._event_fd = event_read
        self._ended = ended

    def follow(self, sink: EventSink | None) -> None:
        """Relays its events to `sink`, if any, from a thread, but for the one that ends it. Then tells how it ended."""
        threading.Thread(target=self._follow, args=(sink,), name=f"rank-{self.number}", daemon=True).start()

    def request(self, line: str) -> None:
        """Passes on a line of the control pipe. Does nothing if the rank has exited."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._control, f"{line}\n".encode())

    def _follow(self, sink: EventSink | None) -> None:
        ending: Event | None = None
        # A rank that is killed while it writes leaves a part of an event.
        with os.fdopen(self._event_fd, "rb") as events, contextlib.suppress(ValueError):
            # Its stub names io.BytesIO; it reads from any buffered file.
            while (event := parse_length_prefixed(Event, events)) is not None:  # type: ignore[arg-type]
                kind = event.WhichOneof("payload")
                if kind in ENDINGS:
                    ending = event
                elif sink is not None and kind is None:
                    sink.tick()
                elif sink is not None:
                    sink.emit(getattr(event, kind), event.severity)
        self._ended.put(Ended(self.number, self.process.wait(), ending))


class Launcher:
    """Runs the ranks of one training. `request` may be called from any thread."""

    def __init__(self) -> None:
        self._ranks: list[Rank] = []

    def request(self, line: str) -> None:
        """Passes on a line of the control pipe to the first rank, which agrees with the others on what to do."""
        for rank in self._ranks[:1]:
            rank.request(line)

    def run(self, world_size: int, threads: int, out_dir: Path, sink: EventSink) -> None:
        """Runs the ranks until all have ended, and emits how.

        If a rank ended without saying how, this process ends in the same way, for its supervisor to explain.
        """
        rendezvous = out_dir / "rendezvous"
        rendezvous.unlink(missing_ok=True)
        environment = {
            **os.environ,
            WORLD_SIZE: str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "OMP_NUM_THREADS": str(max(1, threads // world_size)),
            RENDEZVOUS: str(rendezvous),
            # They are on one machine, whose other networks a confined child may not use.
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
        }
        ended: queue.SimpleQueue[Ended] = queue.SimpleQueue()
        argv = [sys.executable, "-m", "services.trainer.worker", *sys.argv[1:]]
        for number in range(world_size):
            own = {RANK: str(number), LOCAL_RANK: str(number)}
            self._ranks.append(Rank(number, argv, environment | own, ended))
        if word := sink.requested():
            self.request(word)
        for rank in self._ranks:
            rank.follow(sink if rank.number == 0 else None)
        try:
            over = self._wait(ended)
        finally:
            rendezvous.unlink(missing_ok=True)
        (first,) = (each for each in over if each.number == 0)
        decisive = first if not first.failed else cause_of(over)
        if decisive.ending is None:
            _end_as(decisive, world_size)
        kind = decisive.ending.WhichOneof("payload")
        assert kind  # noqa: S101
        sink.emit(getattr(decisive.ending, kind), decisive.ending.severity)

    def _wait(self, ended: "queue.SimpleQueue[Ended]") -> list[Ended]:
        """Waits for the end of all ranks, and kills those that cannot end. Returns them in the order of their ends."""
        over: list[Ended] = []
        while len(over) < len(self._ranks):
            failure = any(rank.failed for rank in over)
            first = any(rank.number == 0 for rank in over)
            seconds = REACTION_SECONDS if failure else _EXIT_SECONDS if first else None
            try:
                over.append(ended.get(timeout=seconds))
            except queue.Empty:
                for rank in self._ranks:
                    rank.process.kill()
        return over


def cause_of(over: Sequence[Ended]) -> Ended:
    """Returns the rank, of those in the order of their ends, that made the others fail.

    That is one that named a reason; else one that was killed, unless it aborted itself, as libraries do whose peer is
    gone; else the first one that crashed.
    """

    def order(rank: Ended) -> tuple[int, int]:
        if rank.ending is None:
            return (1 if rank.status < 0 and rank.status != -signal.SIGABRT else 3), 0
        crashed = rank.ending.stage_failed.reason == "CRASHED"
        return (2 if crashed else 0), rank.ending.event_time.ToNanoseconds()

    return min((rank for rank in over if rank.failed), key=order)


def _end_as(rank: Ended, world_size: int) -> NoReturn:
    status = rank.status
    sys.stdout.write(f"process {rank.number + 1} of {world_size} {rank.how()}\n")
    sys.stdout.flush()
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status or 1)
