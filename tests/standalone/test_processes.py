"""Supervision: what dies comes back, what is stopped stops, nothing survives its supervisor."""

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

Keep = Callable[[Program], SupervisedProcess]


class Notes:
    """Collects a supervisor's messages, so that a test can await one."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[str] = asyncio.Queue()

    async def next(self) -> str:
        return await asyncio.wait_for(self.queue.get(), 30)


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
async def keep(tmp_path: Path, notes: Notes) -> AsyncIterator[Keep]:
    kept: list[SupervisedProcess] = []

    def make(wanted: Program) -> SupervisedProcess:
        back_off = BackOff(first_seconds=0.05, most_seconds=0.2, first_starts=2)
        kept.append(SupervisedProcess(wanted, tmp_path, tmp_path / "logs", notes.queue.put_nowait, back_off))
        return kept[-1]

    yield make
    for process in kept:
        process.kill()
        await process.stop()


async def test_a_process_that_dies_is_started_again_after_a_growing_pause(
    tmp_path: Path, keep: Keep, notes: Notes
) -> None:
    """Otherwise one crash leaves a user with a server that takes jobs and never runs them."""
    kept = keep(program("one", tmp_path))
    await kept.start()
    pids = [kept.pid]
    for again, pause in (("", "0.05"), (", 2 times in a row by now", "0.1")):
        assert kept.pid is not None
        os.kill(kept.pid, signal.SIGKILL)
        assert (await notes.next()).startswith(f"one was killed by SIGKILL{again}; it starts again in {pause} s")
        assert await notes.next() == "one is up again."
        pids.append(kept.pid)
    assert len(set(pids)) == 3


async def test_stop_lets_a_process_end_by_itself(tmp_path: Path, keep: Keep) -> None:
    """A worker that is not asked first loses the checkpoint it was about to write."""
    kept = keep(program("one", tmp_path))
    await kept.start()
    pid = kept.pid
    await kept.stop()
    assert (tmp_path / "one.marks").read_text().splitlines() == [f"started {pid}", f"stopped {pid}"]


async def test_stop_kills_what_does_not_end(tmp_path: Path, keep: Keep) -> None:
    """A process that hangs must not hold up Ctrl-C for ever."""
    kept = keep(program("one", tmp_path, "stubborn", stop_seconds=0.2))
    await kept.start()
    process = psutil.Process(kept.pid)
    await asyncio.wait_for(kept.stop(), 10)
    assert not process.is_running()


async def test_a_second_request_kills_at_once(tmp_path: Path, keep: Keep) -> None:
    """Otherwise a user who presses Ctrl-C twice would still wait for the drain."""
    kept = keep(program("one", tmp_path, "stubborn", stop_seconds=600))
    await kept.start()
    stopping = asyncio.create_task(kept.stop())
    await asyncio.sleep(0)
    kept.kill()
    await asyncio.wait_for(stopping, 10)


async def test_a_process_that_cannot_run_says_why(tmp_path: Path, keep: Keep) -> None:
    """A user who is only told that it failed has nothing to go on."""

    async def never() -> bool:
        return False

    broken = Program("one", (sys.executable, "-c", "raise SystemExit('the database is of another version')"), never)
    with pytest.raises(StartFailed, match=r"one ended with exit code 1[\s\S]*the database is of another version"):
        await keep(broken).start()


async def test_a_fault_in_the_supervision_ends_the_start_and_the_process(tmp_path: Path, keep: Keep) -> None:
    """It would wait in silence for two minutes, and leave a process that nobody stops."""

    async def broken() -> bool:
        raise TypeError("asked in the wrong way")

    kept = keep(Program("one", program("one", tmp_path).argv, broken))
    with pytest.raises(StartFailed, match="asked in the wrong way"):
        await kept.start()
    assert kept.pid is None
    with pytest.raises(TypeError):
        await kept.stop()
    kept._life = None


def test_nothing_survives_a_killed_supervisor(tmp_path: Path) -> None:
    """Orphans hold ports, memory and a GPU, and nobody knows why the next start fails."""
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


def test_a_program_does_not_start_under_a_parent_that_is_gone(tmp_path: Path) -> None:
    """Between a start and its tie to the parent there is an instant in which the parent can die."""
    mark = tmp_path / "mark"
    nobody = subprocess.Popen([sys.executable, "-c", ""])
    nobody.wait()
    argv = [sys.executable, "-c", f"open({str(mark)!r}, 'w')"]
    subprocess.run([sys.executable, guard.__file__, str(nobody.pid), *argv], check=True, timeout=30)
    assert not mark.exists()


def test_a_guarded_program_gets_its_arguments_as_they_are(tmp_path: Path) -> None:
    """A home with a space in its name is a home."""
    told = tmp_path / "told"
    code = "import sys; open(sys.argv[1], 'w').write(repr(sys.argv[2:]))"
    subprocess.run(guard.guarded([sys.executable, "-c", code, str(told), "a b", "$c", ""]), check=True, timeout=30)
    assert told.read_text() == repr(["a b", "$c", ""])
