"""The supervisor's side of a resident child: starts it, asks it, and passes on what it answers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from chassis.child.child_process import Child, ChildCommand
from chassis.child.spare import Spare
from chassis.errors import Unavailable
from engine.errors import JobError, Violation
from services.attempt_inputs import child_devices, child_environment
from services.evaluator.resident.messages import Ask, Refusal, Reply, ResidentInput
from services.evaluator.settings import EvaluatorSettings

_log = logging.getLogger(__name__)

_ADAPTERS: Final = "adapters"


class Resident:
    """A child with its model. `asks` are answered by `answer` once `ready` is done."""

    def __init__(self, child: Child, folder: Path, child_input: ResidentInput, stall_seconds: float) -> None:
        self._child, self._folder, self._input = child, folder, child_input
        self._stall_seconds = stall_seconds
        self._numbers = itertools.count(1)
        self._replies: dict[int, asyncio.Queue[Reply | Exception]] = {}
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._killed_because = ""
        self._last_frame = time.monotonic()
        self._reading = asyncio.create_task(self._read(), name=f"resident-{child.pid}")

    @classmethod
    async def start(
        cls, settings: EvaluatorSettings, spare: Spare, child_input: ResidentInput, folder: Path, *, gpus: int
    ) -> Resident:
        """Starts the child in `folder`, confined to that and its weights. Raises OSError."""
        child_input.asks_dir.mkdir(parents=True)
        adapters_folder(folder).mkdir()
        file = folder / "input.json"
        file.write_text(child_input.model_dump_json(indent=1), "utf-8")
        command = ChildCommand(
            argv=[sys.executable, "-m", "services.evaluator.resident", str(file)],
            env=child_environment(settings),
            late_env=child_devices(gpus),
            out_dir=child_input.out_dir,
            reads=[child_input.model.path, child_input.weights_dir],
        )
        child = await spare.start(command, folder)
        return cls(child, folder, child_input, settings.stall_seconds)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def adapters(self) -> Path:
        """Folder for the adapters that the child reads."""
        return adapters_folder(self._folder)

    async def wait_until_loaded(self, stall_seconds: float) -> None:
        """Waits until the model is in memory. Raises JobError if it cannot be loaded, Unavailable if the child ends."""
        try:
            async with asyncio.timeout(stall_seconds):
                await asyncio.shield(self._loaded)
        except TimeoutError:
            self.kill(f"it did not load the model within {stall_seconds:g} seconds")
            await self._loaded

    async def answer(self, ask: Ask) -> AsyncGenerator[Reply, None]:
        """Yields the parts of an answer; the last one has a finish_reason. When it is closed, the child ends the answer
        at once. Raises JobError for an ask that cannot be answered, Unavailable if the child ends."""
        number = next(self._numbers)
        file = self._input.asks_dir / f"{number}.json"
        replies = self._replies[number] = asyncio.Queue()
        finished = False
        try:
            self._raise_if_ended()
            await asyncio.to_thread(file.write_text, ask.model_dump_json(), "utf-8")
            self._child.control(f"ask {number}")
            while not finished:
                reply = await self._next_reply(replies)
                if isinstance(reply, Exception):
                    finished = True
                    raise reply
                finished = bool(reply.finish_reason)
                yield reply
        finally:
            del self._replies[number]
            if not finished:
                self._child.control(f"leave {number}")
            file.unlink(missing_ok=True)

    def kill(self, because: str = "") -> None:
        """Ends the child. `because` is what callers whose answers it ends are told."""
        self._killed_because = self._killed_because or because
        self._child.kill()

    async def wait(self) -> None:
        """Waits for the child's end."""
        await asyncio.shield(self._reading)

    async def _next_reply(self, replies: asyncio.Queue[Reply | Exception]) -> Reply | Exception:
        while True:
            try:
                async with asyncio.timeout(self._stall_seconds):
                    return await replies.get()
            except TimeoutError:
                # An answer may wait while the child answers others.
                if time.monotonic() - self._last_frame >= self._stall_seconds:
                    self.kill(f"it was silent for {self._stall_seconds:g} seconds")

    async def _read(self) -> None:
        try:
            async with contextlib.aclosing(self._child.frames()) as frames:
                async for frame in frames:
                    self._last_frame = time.monotonic()
                    if frame:
                        self._receive(Reply.model_validate_json(frame))
        except (ValidationError, ValueError) as error:
            _log.error("a resident child wrote a frame that is no reply: %s", error)
            self.kill("it wrote a reply that cannot be read")
        status = await self._child.wait()
        lost = self._lost(status)
        if not self._loaded.done():
            self._loaded.set_exception(lost)
        # Nobody may be waiting for it.
        self._loaded.exception()
        for replies in self._replies.values():
            replies.put_nowait(lost)
        self._child.close()

    def _receive(self, reply: Reply) -> None:
        result = error_of(reply.refusal) if reply.refusal else reply
        if reply.number:
            # A caller may have left.
            if replies := self._replies.get(reply.number):
                replies.put_nowait(result)
        elif not self._loaded.done():
            if isinstance(result, JobError):
                self._loaded.set_exception(result)
            else:
                self._loaded.set_result(None)

    def _raise_if_ended(self) -> None:
        if self._reading.done():
            raise self._lost(0)

    def _lost(self, status: int) -> Unavailable:
        lines = self._child.last_lines()
        if self._killed_because:
            why = self._killed_because
        elif self._child.host_ran_out_of_memory() or "HOST_OUT_OF_MEMORY" in lines:
            why = "the machine ran out of memory"
        elif "CUDA_OUT_OF_MEMORY" in lines:
            why = "the GPU ran out of memory"
        elif status < 0:
            why = f"it was ended by {signal.Signals(-status).name}"
        else:
            why = f"it ended with exit status {status}"
        if not self._killed_because:
            _log.error("the resident child of %s was lost: %s\n%s", self._input.model.id, why, "\n".join(lines))
        message = f"The process that generated the answer is gone: {why}. Ask again; a new one is started."
        return Unavailable("GENERATION_LOST", message)


def adapters_folder(folder: Path) -> Path:
    """Returns the folder for adapters below that of a resident child."""
    return folder / _ADAPTERS


def error_of(refusal: Refusal) -> JobError:
    """Returns the error that the child sent."""
    violations = [Violation(field, description) for field, description in refusal.violations]
    return JobError(refusal.reason, refusal.message, refusal.advice, violations)
