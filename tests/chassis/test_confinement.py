"""A child that user data has taken over reaches nothing but its inputs and its folder."""

import asyncio
import contextlib
import ctypes
import errno
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from chassis.child.child_process import ChildCommand
from chassis.child.spare import Spare, SpareCommand
from chassis.security import confinement_filter, landlock
from chassis.security.confinement import ChildLimits, Confinement, Files, Network, confined, missing
from finetuneflow.v1 import event_pb2
from tests.servers.nats import NatsServer

CHILD = Path(__file__).with_name("hostile_child.py")
ALLOWED = {
    "read its model",
    "write its folder",
    "move in its folder",
    "write a temporary file",
    "keep a cache",
    "connect a pair of sockets",
    "end its own process",
    "use /dev/null",
}
pytestmark = pytest.mark.skipif(bool(missing()), reason="; ".join(missing()))


@pytest.fixture
def supervisor() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the same user that holds a secret."""
    argv = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(argv, env={"PASSWORD": "secret"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield process
        process.kill()


@pytest.fixture
def shared() -> Iterator[dict[str, int]]:
    """The ids of memory and of a queue of messages that another program of the user shares."""
    libc = ctypes.CDLL(None)
    private, remove = 0, 0
    memory, messages = libc.shmget(private, 4096, 0o600), libc.msgget(private, 0o600)
    assert min(memory, messages) >= 0
    yield {"memory": memory, "messages": messages}
    libc.shmctl(memory, remove, None)
    libc.msgctl(messages, remove, None)


@pytest.fixture
def command(
    tmp_path: Path, nats_server: NatsServer, supervisor: subprocess.Popen[bytes], shared: dict[str, int]
) -> Iterator[ChildCommand]:
    """The command of a child in `work`, in a home with the files of others."""
    home = tmp_path / "home"
    others = {"secret": "work/other/rows.jsonl", "database": "gateway.sqlite", "passwords": "nats/nats.conf"}
    for name in others.values():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("secret")
    (model := tmp_path / "models" / "tiny.safetensors").parent.mkdir()
    model.write_text("weights")
    workdir = home / "work" / "own"
    workdir.mkdir()
    with (
        # The path of a socket has at most 107 characters, fewer than a test's own folder may have.
        tempfile.TemporaryDirectory(dir="/tmp") as short,
        socket.socket(socket.AF_UNIX) as listening,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving,
    ):
        path, datagrams = f"{short}/docker.sock", f"{short}/log.sock"
        listening.bind(path)
        listening.listen()
        receiving.bind(datagrams)
        given = {name: str(home / file) for name, file in others.items()}
        given |= {"out_dir": str(workdir / "out"), "model": str(model), "socket": path, "datagrams": datagrams}
        numbers = {"supervisor": supervisor.pid, "port": nats_server.port, **shared}
        (workdir / "input.json").write_text(json.dumps(given | numbers))
        argv = [sys.executable, str(CHILD), str(workdir / "input.json")]
        yield ChildCommand(argv, workdir / "out", reads=[CHILD, model])


async def results(spare: Spare, command: ChildCommand) -> tuple[dict[str, float], int]:
    """Returns what the child reported, and its process id."""
    async with asyncio.timeout(60):
        child = await spare.start(command, command.out_dir.parent)
        try:
            async with contextlib.aclosing(child.frames()) as frames:
                events = [event_pb2.Event.FromString(frame) async for frame in frames if frame]
            await child.wait()
        finally:
            child.close()
    assert events, child.last_lines()
    assert events[-1].HasField("stage_completed"), (events[-1], child.last_lines())
    return dict(events[0].log.extras), child.pid


async def test_child_reaches_nothing_but_its_inputs_and_its_folder(
    command: ChildCommand, supervisor: subprocess.Popen[bytes]
) -> None:
    """One crafted model or dataset would otherwise read other users' data and the passwords of the system."""
    found, _ = await results(Spare(None, command.out_dir.parent), command)
    assert {name for name, error in found.items() if not error} == ALLOWED
    assert supervisor.poll() is None


async def test_warm_spare_is_confined_before_it_reads_its_input(command: ChildCommand, tmp_path: Path) -> None:
    """Most trainings run in one, and it has completed its imports with access to all files."""
    spare = Spare(SpareCommand(command.argv[:-1]), tmp_path / "spare")
    try:
        pid = await running(spare)
        found, used = await results(spare, command)
    finally:
        await spare.close()
    assert used == pid
    assert {name for name, error in found.items() if not error} == ALLOWED


async def test_spare_with_threads_is_not_used(command: ChildCommand, tmp_path: Path) -> None:
    """A thread that an import has started cannot be confined any more, and would keep access to all files."""
    environment = {"WITH_THREAD": "1"}
    spare = Spare(SpareCommand(command.argv[:-1], environment), tmp_path / "spare")
    try:
        pid = await running(spare)
        same = ChildCommand(command.argv, command.out_dir, environment, reads=command.reads)
        found, used = await results(spare, same)
    finally:
        await spare.close()
    assert used != pid
    assert {name for name, error in found.items() if not error} == ALLOWED


async def test_files_of_a_child_are_limited(command: ChildCommand) -> None:
    """A child in a loop would otherwise fill the disk of all jobs."""
    spare = Spare(None, command.out_dir.parent, limits=ChildLimits(file_bytes=4))
    found, _ = await results(spare, command)
    assert found["write its folder"] == errno.EFBIG


def test_missing_parts_of_the_kernel_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator would otherwise believe that children are confined."""
    monkeypatch.setattr(landlock, "abi", lambda: 4)
    assert [lack for lack in missing() if "end other processes" in lack]
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    monkeypatch.setattr(confinement_filter, "available", lambda: False)
    assert len(missing()) == 2


async def running(spare: Spare) -> int:
    """Opens a spare and returns its process id."""
    spare.open()
    async with asyncio.timeout(20):
        while not spare.pid:  # noqa: ASYNC110 - it sends no notification
            await asyncio.sleep(0.02)
    return spare.pid


READING = """
from pathlib import Path
def read():
    names = ("meminfo", "cpuinfo", "stat", "sys/kernel/ostype", "self/stat")
    print(len([Path("/proc", name).read_bytes() for name in names]), flush=True)
read(); input(); read()
"""
FORGETTING = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
print(child.stdout.readline(), end="")
# The kernel then forgets all files of this /proc that nobody has open, as it does when memory is short.
subprocess.run(["mount", "-o", "remount", "/proc"], check=True)
print(child.communicate("go")[0], end="")
"""


def test_facts_about_the_machine_can_be_read_when_memory_is_short() -> None:
    """A child reads the free memory after hours of work, which would all be lost."""
    private = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--map-root-user"]
    if subprocess.run([*private, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system refuses a private /proc")
    argv = confined([sys.executable, "-c", READING], Confinement(ChildLimits(), Files.of([], [])))
    ended = subprocess.run(
        [*private, sys.executable, "-c", FORGETTING, *argv], capture_output=True, text=True, check=False
    )
    assert ended.stdout.split() == ["5", "5"], ended.stderr


CONNECTING = """
import socket, sys
for port in map(int, sys.argv[1:]):
    with socket.socket() as listening:
        try:
            if not port:
                listening.bind(("127.0.0.1", 0)); listening.listen()
            socket.create_connection(listening.getsockname() if not port else ("127.0.0.1", port), 5).close()
        except OSError as error:
            print(type(error).__name__)
        else:
            print("connected")
"""
WITHOUT_NAMESPACES = """
import ctypes, os, sys
from chassis.security import confinement_filter
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
confinement_filter.refuse_calls(network=True)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def service() -> Iterator[int]:
    """The port of a service of the node, below the ephemeral ones."""
    for port in range(20000, 30000):
        with socket.socket() as listening, contextlib.suppress(OSError):
            listening.bind(("127.0.0.1", port))
            listening.listen()
            yield port
            return


def connections(network: Network, ports: list[int], *, namespaces: bool = True) -> list[str]:
    """What a confined program gets that connects to itself (port 0) or to a service."""
    argv = [sys.executable, "-c", CONNECTING, *map(str, ports)]
    command = confined(argv, Confinement(ChildLimits(), Files.of([], []), network))
    if not namespaces:
        command = [sys.executable, "-c", WITHOUT_NAMESPACES, *command]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return [*ended.stdout.split(), *ended.stderr.splitlines()[-1:]]


def test_processes_that_compute_together_reach_each_other_and_no_service(service: int) -> None:
    """The network that two GPUs need must not open the broker and the database to a child that was taken over."""
    assert connections("own_or_ephemeral", [0, service], namespaces=False) == ["connected", "PermissionError"]
    (refused,) = connections("own", [0], namespaces=False)
    assert refused.startswith("This system refuses a child a network of its own")
    assert "PermissionError" in connections("none", [0])[-1]
    if (own := connections("own", [0, service])) == [refused]:
        pytest.skip(refused)
    assert own == ["connected", "ConnectionRefusedError"]
