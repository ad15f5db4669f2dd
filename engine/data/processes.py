"""Runs tasks on blocks of rows in several processes and returns the results in the order of the tasks.

A child process runs this module as a program and is connected by a socket. It inherits no threads and no open files,
and it exits when the socket closes, however this process ended.
"""

import collections
import gc
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from engine.config.job import JobConfig
from engine.data.block_tokenizer import Alive, BlockTokenizer
from engine.data.tokenizer import Tokenizer
from engine.data.work_limits import WorkLimits
from engine.errors import JobError, SystemFailure

Task = tuple[Any, ...]
"""The name of a method of `BlockTokenizer`, and its arguments without the last one, the `alive` callback."""
_SIGN_SECONDS = 1.0
"""Minimum time between two signs of life that a child process sends."""
_WAIT_SECONDS = 0.5
"""Interval at which a waiting caller passes a sign of life on."""
_AHEAD = 2
"""Queued tasks per process, so that a process never waits for work."""


class Crew:
    """The child processes of one job; a context manager that ends them."""

    def __init__(
        self, config: JobConfig, tokenizer_dir: Path, tokenizer: Tokenizer, count: int, limits: WorkLimits
    ) -> None:
        """`count` is the number of child processes, started when the first tasks arrive; with 0, all tasks run in this
        process. `limits` apply to all of them and this process, which has set its own."""
        self._here = BlockTokenizer(config, tokenizer)
        self._count = count
        self._limits = limits
        self._setup = (config.model_dump_json(), str(tokenizer_dir), limits.model_dump_json())
        self._own = threading.local()
        """The process of each thread."""
        self._processes: list[_Process] = []
        self._threads = ThreadPoolExecutor(max(count, 1), thread_name_prefix="rows")
        self._sign = False

    def map_here(self, tasks: Iterable[Task], alive: Alive) -> Iterator[Any]:
        """Yields the results of the tasks, run in this process. `alive` is called while the work continues; an
        exception that it raises ends the work."""
        for name, *arguments in tasks:
            yield getattr(self._here, name)(*arguments, alive)

    def map(self, tasks: Iterable[Task], alive: Alive) -> Iterator[Any]:
        """Yields the results of the tasks, run in parallel in the child processes. Raises SystemFailure if a process
        died, JobError if a limit ended it."""
        if not self._count:
            yield from self.map_here(tasks, alive)
            return
        todo = iter(tasks)
        pending: collections.deque[Future[Any]] = collections.deque()
        failure: Exception | None = None
        while True:
            while failure is None and len(pending) < (1 + _AHEAD) * self._count:
                try:
                    task = next(todo)
                except Exception as error:  # noqa: BLE001 - raised below, after the results of the earlier tasks
                    failure = error
                else:
                    pending.append(self._threads.submit(self._call, task))
            if not pending:
                break
            future = pending.popleft()
            while not future.done():
                try:
                    future.exception(_WAIT_SECONDS)
                except TimeoutError:
                    if self._sign:
                        self._sign = False
                        self._check_processor_time()
                        alive()
            self._check_processor_time()
            alive()
            yield future.result()
        if not isinstance(failure, StopIteration):
            raise failure  # type: ignore[misc]

    def _call(self, task: Task) -> Any:
        if not hasattr(self._own, "process"):
            self._own.process = _Process(self._setup, self._limits.deaths())
            self._processes.append(self._own.process)
        answer = self._own.process.ask(task, self._heard)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _check_processor_time(self) -> None:
        self._limits.check_processor_time(sum(process.processor_seconds for process in list(self._processes)))

    def _heard(self) -> None:
        self._sign = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._end()
        self._threads.shutdown()
        # A thread may have started its process meanwhile.
        self._end()

    def _end(self) -> None:
        for process in list(self._processes):
            process.end()


class _Process:
    def __init__(self, setup: tuple[str, str, str], deaths: Mapping[int, JobError]) -> None:
        ours, theirs = Pipe()
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TOKENIZERS_PARALLELISM": "false",
        }
        argv = [sys.executable, "-m", "engine.data.processes", str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                argv, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        self._connection = ours
        self._setup: tuple[str, str, str] | None = setup
        self._deaths = deaths
        self.processor_seconds = 0.0
        """Processor time that it had used when it last said something."""

    def ask(self, task: Task, heard: Callable[[], None]) -> Any:
        try:
            if self._setup:
                self._connection.send(self._setup)
                self._setup = None
            self._connection.send(task)
            while (answer := self._receive()) is None:
                heard()
        except (EOFError, OSError) as error:
            status = self._process.wait()
            if status in self._deaths:
                raise self._deaths[status] from error
            message = f"A process that tokenizes rows died (exit status {status})."
            raise SystemFailure("KILLED", message, "The machine may have run out of memory.") from error
        return answer

    def _receive(self) -> Any:
        self.processor_seconds, answer = self._connection.recv()
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()


def _serve(connection: Connection) -> None:
    said = time.monotonic()

    def alive() -> None:
        nonlocal said
        limits.check_processor_time()
        if time.monotonic() - said > _SIGN_SECONDS:
            said = time.monotonic()
            connection.send((time.process_time(), None))

    config, tokenizer_dir, given = connection.recv()
    limits = WorkLimits.model_validate_json(given)
    limits.apply()
    work = BlockTokenizer.of_job(config, tokenizer_dir)
    # Rows create no reference cycles; searching for cycles takes a tenth of the time.
    gc.freeze()
    gc.set_threshold(100_000)
    while True:
        name, *arguments = connection.recv()
        try:
            answer = getattr(work, name)(*arguments, alive)
        except Exception as error:  # noqa: BLE001 - raised in the parent process
            if not isinstance(error, JobError):
                traceback.print_exc()
            answer = error
        connection.send((time.process_time(), answer))


if __name__ == "__main__":
    try:
        _serve(Connection(int(sys.argv[1])))
    except (EOFError, OSError):
        # The parent process has closed the socket.
        os._exit(0)
