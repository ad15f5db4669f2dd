"""The supervisor's side of the pipe: starts a child, reads its frames, ends it. Counterpart: chassis.child.pipe."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from chassis.child.pipe import CONTROL_FD, EVENT_FD
from chassis.error_protocols import CallerFault
from chassis.security.confinement import Confinement, Network, confined

_log = logging.getLogger(__name__)

MAX_FRAME_BYTES: Final = 1024 * 1024
"""Far above the limit of an event, so that an event that is too large can be told from a broken pipe."""
WORKDIR: Final = "FTF_WORKDIR"
"""Environment variable that marks a child, and every process it starts, as belonging to an attempt."""
LAST_LINES: Final = 40
_LAST_BYTES = 8 * 1024
_PIPE_BYTES = 1024 * 1024
LINGER_SECONDS: Final = 5.0
"""Time for which the pipes of an exited child are read, if another process holds them open."""
_READ_BYTES = 16 * 1024
"""Bytes processed in one go, about a hundred events: a supervisor serves more than one child."""
_EVENT_BYTES_PER_SECOND: Final = 512 * 1024
_EVENT_BYTES_AT_ONCE: Final = 16 * 1024**2
"""A child that writes events faster for long has to wait: they are stored for ever, and delay the end of its attempt. A
thousand steps a second, each with an event, stay below."""

_PASSED_ON = frozenset(
    {
        "PATH",
        "HOME",
        "LANG",
        "TZ",
        "TMPDIR",
        "VIRTUAL_ENV",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "USER",
        "LOGNAME",
        # Set by tests alone, which make a child fail at a named place.
        "FTF_FAILPOINTS",
    }
)
_PASSED_ON_PREFIXES = ("PYTHON", "LC_", "OMP_", "MKL_", "OPENBLAS_", "CUDA_", "NVIDIA_", "NCCL_", "TORCH", "MALLOC_")


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Returns a child's environment: without addresses, passwords and tokens, and with hubs switched off."""
    passed = {
        key: value for key, value in os.environ.items() if key in _PASSED_ON or key.startswith(_PASSED_ON_PREFIXES)
    }
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    # A module in the folder where it works, which holds a user's files, must not be imported.
    return {**passed, **offline, "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1", **extra}


@dataclass(frozen=True)
class ChildCommand:
    """The command that starts the child of an attempt."""

    argv: Sequence[str]
    """Such as `[sys.executable, "-m", "services.trainer.worker", str(workdir / "input.json")]`."""
    out_dir: Path
    """Folder it writes to; paths in its events are relative to it."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment that every child gets."""
    late_env: Mapping[str, str] = field(default_factory=dict)
    """Variables that also take effect after a child's imports, such as its devices: a warm spare receives them together
    with its input."""
    cold: bool = False
    """True if it cannot use a warm spare, because it needs what that has not imported."""
    network: Network = "none"
    """Whether processes that it starts reach each other over TCP; such a child starts cold."""
    driver: bool = False
    """True for a program that only starts the work, on other machines, and runs neither users' data nor models: it is
    not confined, and its resources are not measured."""
    on_cpu: bool = False
    """True if it computes on the CPU for long: no spare is warmed up beside it."""
    refusals: Mapping[int, CallerFault] = field(default_factory=dict)
    """The caller's errors, by the exit statuses with which limits that the child sets itself end it."""
    reads: Sequence[Path] = ()
    """Files and folders that it reads outside of the folder where it works, such as its model."""
    writes: Sequence[Path] = ()
    """Files and folders outside of `out_dir` that it writes."""
    provide: Callable[[], Coroutine[Any, Any, None]] | None = None
    """Work of the supervisor beside the child, such as the download of files that the child asks for. It is cancelled
    when the child has ended; an exception ends the child, and fails the attempt as one of its preparation does."""


class Child:
    """A process group of its own, with its event pipe, control pipe and output."""

    def __init__(
        self, process: subprocess.Popen[bytes], events: asyncio.StreamReader, control_fd: int, linger_seconds: float
    ) -> None:
        self._process = process
        self._events = events
        self._control_fd = control_fd
        self._linger_seconds = linger_seconds
        self._unread = b""
        self._position = 0
        self._pace = Pace()
        self._lines: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self._oom_kills = oom_kills()
        loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = loop.create_future()
        self._drained: asyncio.Future[None] = loop.create_future()
        self.pid = process.pid
        self.create_time = psutil.Process(process.pid).create_time()
        threading.Thread(target=self._wait, args=(loop,), name=f"wait-{self.pid}", daemon=True).start()
        threading.Thread(target=self._read_output, args=(loop,), name=f"output-{self.pid}", daemon=True).start()

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        *,
        confinement: Confinement | None = None,
        linger_seconds: float = LINGER_SECONDS,
    ) -> Child:
        """Starts a child; `env` is added to what every child gets. Raises OSError if it cannot be started.

        Without a `confinement` it may do what its user may: for programs that touch no user's data.
        A process that left the child's group may hold its pipes open: they are read for `linger_seconds` after the
        child has exited, and no longer.
        """
        event_read, event_write = os.pipe()
        control_read, control_write = os.pipe()
        with contextlib.suppress(OSError):
            fcntl.fcntl(event_write, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        try:
            given = child_environment(env) | {EVENT_FD: str(event_write), CONTROL_FD: str(control_read)}
            # Blocks for a vfork only, and must happen in this thread: the child dies with the thread that started it.
            process = subprocess.Popen(  # noqa: ASYNC220
                confined(argv, confinement) if confinement else list(argv),
                env=given,
                cwd=cwd,
                pass_fds=(event_write, control_read),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError:
            os.close(event_read)
            os.close(control_write)
            raise
        finally:
            os.close(event_write)
            os.close(control_read)
        reader = asyncio.StreamReader(limit=MAX_FRAME_BYTES)
        child = cls(process, reader, control_write, linger_seconds)
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(event_read, "rb", 0))
        except BaseException:
            # The cancelled caller gets no child that it could close.
            child.close()
            raise
        return child

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Yields every frame, b"" for a tick, until the child has exited. Raises ValueError for an invalid frame.

        For one reader after another: a frame that one has not read is left for the next.
        """
        ended = asyncio.create_task(self._linger())
        reading: asyncio.Task[bytes] | None = None
        try:
            while True:
                while (frame := self._next_frame()) is not None:
                    yield frame
                # A task for each frame would cost more than all other work on it.
                reading = asyncio.create_task(self._events.read(_READ_BYTES))
                await asyncio.wait({reading, ended}, return_when=asyncio.FIRST_COMPLETED)
                # A process that left the process group may hold the pipe open.
                if not reading.done() or not (data := await reading):
                    return
                self._unread = self._unread[self._position :] + data
                self._position = 0
                if (seconds := self._pace.delay(len(data))) and self.running:
                    await asyncio.sleep(seconds)
        finally:
            ended.cancel()
            if reading:
                # It would take frames away from the next reader.
                reading.cancel()

    def begin(self) -> None:
        """Marks the start of a spare's work: earlier output and earlier kills for memory are not part of it."""
        self._lines.clear()
        self._oom_kills = oom_kills()

    def control(self, word: str) -> None:
        """Sends `pause` or `cancel`, or to a spare its start line. Does nothing if the child has exited."""
        with contextlib.suppress(OSError):
            os.write(self._control_fd, f"{word}\n".encode())

    def kill(self) -> None:
        """Sends SIGKILL to its process group."""
        if not self._exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """Waits for its end and its output. Returns the exit status, negative for a signal."""
        status = await asyncio.shield(self._exited)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._linger_seconds):
                await asyncio.shield(self._drained)
        return status

    @property
    def running(self) -> bool:
        return not self._exited.done()

    def last_lines(self) -> list[str]:
        """Returns the last lines of its output: at most 40 lines and 8 KiB."""
        kept: list[str] = []
        left = _LAST_BYTES
        for line in reversed(self._lines):
            left -= len(line.encode())
            if left < 0:
                break
            kept.append(line)
        return kept[::-1]

    def host_ran_out_of_memory(self) -> bool:
        """Returns True if the kernel killed a process of this container for memory since the child was started."""
        return oom_kills() > self._oom_kills

    def close(self) -> None:
        """Kills it and closes its control pipe."""
        self.kill()
        if self._control_fd >= 0:
            os.close(self._control_fd)
            self._control_fd = -1

    async def _linger(self) -> None:
        await asyncio.shield(self._exited)
        await asyncio.sleep(self._linger_seconds)

    def _next_frame(self) -> bytes | None:
        """Returns the next frame of the bytes read so far, or None if it is not complete."""
        data, position = self._unread, self._position
        length = shift = 0
        while position < len(data):
            byte = data[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"the child wrote a frame of {length} bytes")
            if byte < 0x80:
                if position + length > len(data):
                    return None
                self._position = position + length
                return data[position : self._position]
        return None

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        # Until it is reaped it owns the number of its process group: no other group can be killed here.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        status = self._process.wait()
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._exited.set_result, status)

    def _read_output(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self._process.stdout  # noqa: S101
        with self._process.stdout as output:
            while line := output.readline(_LAST_BYTES):
                text = line.decode(errors="replace").rstrip()
                # A progress bar overwrites its line; only its last state is kept.
                text = text.rsplit("\r", 1)[-1]
                if text:
                    self._lines.append(text[:1000])
                    _log.debug("child %d: %s", self.pid, text)
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._drained.set_result, None)


class Pace:
    """Limits the bytes per second that are read from a child, after a first amount at once."""

    def __init__(self) -> None:
        self._left = float(_EVENT_BYTES_AT_ONCE)
        self._time = time.monotonic()

    def delay(self, num_bytes: int) -> float:
        """Counts bytes that were read. Returns the seconds to wait before the next are read."""
        now = time.monotonic()
        earned = (now - self._time) * _EVENT_BYTES_PER_SECOND
        self._left = min(self._left + earned, _EVENT_BYTES_AT_ONCE) - num_bytes
        self._time = now
        return max(0.0, -self._left / _EVENT_BYTES_PER_SECOND)


def kill_leftover(pid: int, create_time: float) -> bool:
    """Kills the process group of a child that an earlier supervisor left behind. Returns False if it has ended."""
    try:
        if abs(psutil.Process(pid).create_time() - create_time) > 0.01:
            return False
        os.killpg(pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    return True


def kill_processes_of(workdir: Path) -> None:
    """Kills every process that was started for the attempt with that folder, also one that left the process group.

    A shell that a user opened in the folder is not killed.
    """
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(WORKDIR) == str(workdir):
                process.kill()


def oom_kills() -> int:
    """Returns how often the kernel killed a process of this container for memory."""
    for name in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with contextlib.suppress(OSError, ValueError):
            for line in Path(name).read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
    return 0
