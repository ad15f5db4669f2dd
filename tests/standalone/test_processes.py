"""Supervision: dead processes are restarted, stopped ones end, and none outlives its supervisor."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from standalone import guard
from standalone.processes import BackOff, Program, StartFailed, SupervisedProcess
from tests.standalone.supervisor import program

Supervise = Callable[[Program], SupervisedProcess]


class MessageQueue:
    """Collects a supervisor's messages, so that a test can await one."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[str] = asyncio.Queue()

    async def next(self) -> str:
        return await asyncio.wait_for(self.queue.get(), 30)


@pytest.fixture
def messages() -> MessageQueue:
    return MessageQueue()


@pytest.fixture
async def supervise(tmp_path: Path, messages: MessageQueue) -> AsyncIterator[Supervise]:
    supervised: list[SupervisedProcess] = []

    def make(wanted: Program) -> SupervisedProcess:
        back_off = BackOff(first_seconds=0.05, most_seconds=0.2, first_starts=2)
        supervised.append(SupervisedProcess(wanted, tmp_path, tmp_path / "logs", messages.queue.put_nowait, back_off))
        return supervised[-1]

    yield make
    for process in supervised:
        process.kill()
        await process.stop()


async def test_dead_process_is_restarted_with_growing_delay(
    tmp_path: Path, supervise: Supervise, messages: MessageQueue
) -> None:
    """Otherwise one crash would leave a server that accepts jobs and never runs them."""
    supervised = supervise(program("one", tmp_path))
    await supervised.start()
    pids = [supervised.pid]
    for again, pause in (("", "0.05"), (", 2 times in a row by now", "0.1")):
        assert supervised.pid is not None
        os.kill(supervised.pid, signal.SIGKILL)
        assert (await messages.next()).startswith(f"one was killed by SIGKILL{again}; it starts again in {pause} s")
        assert await messages.next() == "one is up again."
        pids.append(supervised.pid)
    assert len(set(pids)) == 3


async def test_stop_waits_for_process_to_end(tmp_path: Path, supervise: Supervise) -> None:
    """A worker that is killed at once loses the checkpoint that it was about to write."""
    supervised = supervise(program("one", tmp_path))
    await supervised.start()
    pid = supervised.pid
    await supervised.stop()
    assert (tmp_path / "one.marks").read_text().splitlines() == [f"started {pid}", f"stopped {pid}"]


async def test_stop_kills_process_that_does_not_end(tmp_path: Path, supervise: Supervise) -> None:
    """A process that hangs must not delay Ctrl-C for ever."""
    supervised = supervise(program("one", tmp_path, "stubborn", stop_seconds=0.2))
    await supervised.start()
    process = psutil.Process(supervised.pid)
    await asyncio.wait_for(supervised.stop(), 10)
    assert not process.is_running()


async def test_a_second_request_kills_at_once(tmp_path: Path, supervise: Supervise) -> None:
    """Otherwise a user who presses Ctrl-C twice would still wait for the drain."""
    supervised = supervise(program("one", tmp_path, "stubborn", stop_seconds=600))
    await supervised.start()
    stopping = asyncio.create_task(supervised.stop())
    await asyncio.sleep(0)
    supervised.kill()
    await asyncio.wait_for(stopping, 10)


async def test_process_that_cannot_start_reports_the_cause(tmp_path: Path, supervise: Supervise) -> None:
    """The user needs the cause to correct it."""

    async def never() -> bool:
        return False

    broken = Program("one", (sys.executable, "-c", "raise SystemExit('the database is of another version')"), never)
    with pytest.raises(StartFailed, match=r"one ended with exit code 1[\s\S]*the database is of another version"):
        await supervise(broken).start()


async def test_exception_in_supervision_fails_start_and_ends_the_process(tmp_path: Path, supervise: Supervise) -> None:
    """The start would otherwise wait for two minutes, and leave a process that nothing stops."""

    async def broken() -> bool:
        raise TypeError("asked in the wrong way")

    supervised = supervise(Program("one", program("one", tmp_path).argv, broken))
    with pytest.raises(StartFailed, match="asked in the wrong way"):
        await supervised.start()
    assert supervised.pid is None
    with pytest.raises(TypeError):
        await supervised.stop()
    supervised._life = None


def test_all_processes_end_with_a_killed_supervisor(tmp_path: Path) -> None:
    """Orphans hold ports, memory and a GPU, and the next start fails without a visible cause."""
    supervisor = Path(__file__).with_name("supervisor.py")
    with subprocess.Popen([sys.executable, supervisor, tmp_path], stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            children = [psutil.Process(pid) for pid in json.loads(running.stdout.readline())]
        finally:
            running.kill()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert len(gone) == 2
    assert not alive


def test_program_does_not_start_if_its_parent_has_ended(tmp_path: Path) -> None:
    """The parent can die between the start and the call that ties the program to it."""
    mark = tmp_path / "mark"
    nobody = subprocess.Popen([sys.executable, "-c", ""])
    nobody.wait()
    argv = [sys.executable, "-c", f"open({str(mark)!r}, 'w')"]
    subprocess.run([sys.executable, guard.__file__, str(nobody.pid), *argv], check=True, timeout=30)
    assert not mark.exists()


def test_guarded_program_receives_its_arguments_unchanged(tmp_path: Path) -> None:
    """The path of a home may contain a space."""
    told = tmp_path / "told"
    code = "import sys; open(sys.argv[1], 'w').write(repr(sys.argv[2:]))"
    subprocess.run(guard.guarded([sys.executable, "-c", code, str(told), "a b", "$c", ""]), check=True, timeout=30)
    assert told.read_text() == repr(["a b", "$c", ""])
