"""Supervises a program: start, readiness, restart with back-off, stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from standalone.guard import guarded

_MAX_LOG_BYTES = 16 << 20
_TAIL_LINES = 20


@dataclass(frozen=True)
class Program:
    """A program to supervise."""

    name: str
    argv: tuple[str, ...]
    ready: Callable[[], Awaitable[bool]]
    """Called repeatedly after each start until it returns True."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of this process."""
    stop_seconds: float = 10.0
    """Time between SIGTERM and SIGKILL."""


@dataclass(frozen=True)
class BackOff:
    """The delay before a restart. It doubles with each failure and is reset after a run of `healthy_seconds`."""

    first_seconds: float = 0.5
    most_seconds: float = 30.0
    healthy_seconds: float = 30.0
    first_starts: int = 3
    """Number of times a program may end before it was ever ready; then it is given up."""


class StartFailed(Exception):
    """A program could not be started; the message has the reason and the end of its log."""


class SupervisedProcess:
    """A supervised program: call `start`, then `stop`. It never outlives this process, even if that gets a SIGKILL.

    Use it in the main thread; `guard` has the reason. `notify` is called with a sentence for each unexpected end and
    each recovery.
    """

    def __init__(
        self, program: Program, folder: Path, logs: Path, notify: Callable[[str], None], back_off: BackOff | None = None
    ) -> None:
        self.program = program
        self.log = logs / f"{program.name}.log"
        self.pid: int | None = None
        """None while the program does not run."""
        self._folder = folder
        self._notify = notify
        self._back_off = back_off or BackOff()
        self._stopping = asyncio.Event()
        self._killing = asyncio.Event()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._life: asyncio.Task[None] | None = None

    async def start(self, timeout_seconds: float = 120.0) -> None:
        """Starts the program and returns when it is ready for the first time. Raises StartFailed."""
        self._life = asyncio.create_task(self._live(), name=self.program.name)
        try:
            async with asyncio.timeout(timeout_seconds):
                await asyncio.shield(self._ready)
        except TimeoutError:
            raise StartFailed(self._failure_message(f"is not ready after {timeout_seconds:.0f} s")) from None

    async def stop(self) -> None:
        """Sends SIGTERM, and SIGKILL after the program's `stop_seconds`. Returns when it has ended."""
        self._stopping.set()
        if self._life is not None:
            await self._life

    def kill(self) -> None:
        """Sends SIGKILL, also to a program that is stopping. `stop` waits for its end."""
        self._killing.set()
        self._stopping.set()

    async def _live(self) -> None:
        """Returns after `stop`, or when the program is given up before it was ever ready."""
        try:
            await self._run_until_stopped()
        except Exception as error:
            # The supervision itself failed; `stop` raises this too.
            self._give_up(f"{self.program.name} is no longer supervised: {error!r}")
            raise
        self._give_up(f"{self.program.name} was stopped before it was ready")

    def _give_up(self, why: str) -> None:
        if not self._ready.done():
            self._ready.set_exception(StartFailed(why))
            # Retrieved here, since a caller that stops a start may not await its result.
            self._ready.exception()

    async def _run_until_stopped(self) -> None:
        delay = self._back_off.first_seconds
        ends = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                manner = _describe_exit(await self._run_once())
            except OSError as error:
                # No memory or no process slot right now: temporary, like a crash.
                manner = f"could not be started: {error}"
            if self._stopping.is_set():
                return
            if time.monotonic() - began >= self._back_off.healthy_seconds:
                delay, ends = self._back_off.first_seconds, 0
            ends += 1
            if not self._ready.done() and ends >= self._back_off.first_starts:
                self._give_up(self._failure_message(manner))
                return
            again = f", {ends} times in a row by now" if ends > 1 else ""
            self._notify(f"{self.program.name} {manner}{again}; it starts again in {delay:g} s. Its log: {self.log}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._stopping.wait()
            delay = min(delay * 2, self._back_off.most_seconds)

    async def _run_once(self) -> int:
        with self._open_log() as log:
            process = await asyncio.create_subprocess_exec(
                *guarded(self.program.argv),
                cwd=self._folder,
                # The user's FTF_ settings stay in force unless the stack sets them. With the safe path, a folder named
                # `gateway` or `datasets` in the user's working directory is not imported instead of the package.
                env=os.environ | {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"} | dict(self.program.env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C in the terminal goes to the supervisor only, which stops all programs in order.
                start_new_session=True,
            )
        self.pid = process.pid
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        ready = asyncio.create_task(self._until_ready())
        try:
            done, _ = await asyncio.wait([ended, stopping, ready], return_when=asyncio.FIRST_COMPLETED)
            if ready in done:
                # Raises here if the readiness check itself failed.
                ready.result()
                await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._end(process, ended)
            return await ended
        finally:
            self.pid = None
            for task in (ready, stopping):
                task.cancel()
            await asyncio.wait([ready, stopping])
            if not ended.done():
                process.kill()
                await ended

    async def _until_ready(self) -> None:
        while not await self.program.ready():  # noqa: ASYNC110 - what is asked lives in another process
            await asyncio.sleep(0.05)
        if not self._ready.done():
            self._ready.set_result(None)
        else:
            self._notify(f"{self.program.name} is up again.")

    async def _end(self, process: asyncio.subprocess.Process, ended: asyncio.Task[int]) -> None:
        if not self._killing.is_set():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            killing = asyncio.create_task(self._killing.wait())
            await asyncio.wait([ended, killing], timeout=self.program.stop_seconds, return_when=asyncio.FIRST_COMPLETED)
            killing.cancel()
        if not ended.done():
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def _open_log(self) -> IO[bytes]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > _MAX_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".log.1"))
        return self.log.open("ab")

    def _failure_message(self, what: str) -> str:
        return f"{self.program.name} {what}. The end of {self.log}:\n{tail(self.log)}"


def tail(log: Path, lines: int = _TAIL_LINES) -> str:
    """Returns the last lines of a log, or "(nothing)" if it is empty or missing."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 64 * 1024))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        text = ""
    return "\n".join(text.splitlines()[-lines:]) or "(nothing)"


def serving(open_channel: Callable[[], grpc.aio.Channel]) -> Callable[[], Awaitable[bool]]:
    """Returns the readiness check of a gRPC server: its health check answers SERVING."""

    async def ready() -> bool:
        async with open_channel() as channel:
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return ready


def _describe_exit(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
