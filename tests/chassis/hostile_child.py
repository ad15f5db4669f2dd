"""A child that tries what a fallen one would, and what it needs. It reports the error number of each; 0: it worked."""

import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from chassis.child.pipe import EventSink, run_child
from chassis.child.warm_start import wait_for_input
from finetuneflow.v1 import event_pb2, stage_result_pb2

_PTRACE_ATTACH = 16


def _connect(port: int) -> None:
    with socket.socket() as tcp:
        tcp.connect(("127.0.0.1", port))


def _bind() -> None:
    with socket.socket() as tcp:
        tcp.bind(("127.0.0.1", 0))


def _send_udp(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(b"data", ("127.0.0.1", port))


def _connect_unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.connect(path)


def _trace(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(_PTRACE_ATTACH, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def _limit(pid: int) -> None:
    import resource

    resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, 64))


def _run_written(out: Path) -> None:
    program = out / "program"
    with os.fdopen(os.open(program, os.O_WRONLY | os.O_CREAT, 0o700), "w") as file:
        file.write("#!/bin/sh\nexit 0\n")
    subprocess.run([str(program)], check=True)


def _send_datagram(path: str) -> None:
    first, _ = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    first.sendto(b"data", path)


def _change_rights_by_descriptor(path: str) -> None:
    # It may read this file, and its user owns it.
    with Path(path).open() as file:
        os.fchmod(file.fileno(), 0o600)


def _libc(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)


def _share_memory() -> None:
    _libc("shmget", 4711, 4096, 0o1600)


def _attach(segment: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_ssize_t
    if libc.shmat(segment, None, 0) == -1:
        raise OSError(ctypes.get_errno(), "shmat")


def _leave(**how: Any) -> None:
    subprocess.run([sys.executable, "-c", ""], check=True, **how)


def _set_priority_of_disk(pid: int) -> None:
    process, idle, number = 1, 3 << 13, 251 if os.uname().machine == "x86_64" else 30
    _libc("syscall", number, process, pid, idle)


def _change_attributes(path: str) -> None:
    get_flags, set_flags = 0x80086601, 0x40086602
    with Path(path).open() as file:
        fcntl.ioctl(file, set_flags, fcntl.ioctl(file, get_flags, bytes(8)))


def _be_told(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.fcntl(descriptor, fcntl.F_NOTIFY, fcntl.DN_MODIFY)
    os.close(descriptor)


def _lease(path: str) -> None:
    with Path(path).open() as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _clone_namespaces() -> None:
    """Begins a process in a namespace of its own, in which it would be root."""
    new_user, exit_signal, sys_clone = 0x10000000, signal.SIGCHLD, 56 if os.uname().machine == "x86_64" else 220
    libc = ctypes.CDLL(None, use_errno=True)
    pid = libc.syscall(sys_clone, new_user | exit_signal, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone")
    os.waitpid(pid, 0)


def _in_thread(call: Callable[[], object]) -> None:
    """Raises what the call raises in a thread of its own."""
    errors: list[OSError] = []

    def work() -> None:
        try:
            call()
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _in_process(path: str) -> None:
    if subprocess.run([sys.executable, "-c", f"open({path!r})"], stderr=subprocess.DEVNULL, check=False).returncode:
        raise PermissionError(path)


def _use_pair() -> None:
    first, second = socket.socketpair()
    first.send(b"x")
    second.recv(1)


def _move(out: Path) -> None:
    (out / "new").mkdir()
    (out / "weights").rename(out / "new" / "weights")


def _attempts(given: dict[str, Any], out: Path) -> dict[str, Callable[[], object]]:
    pid, secret, port = given["supervisor"], given["secret"], given["port"]
    return {
        "read /etc/passwd": lambda: Path("/etc/passwd").read_text(),
        "read a file of another job": lambda: Path(secret).read_text(),
        "read the database": lambda: Path(given["database"]).read_text(),
        "read the broker's passwords": lambda: Path(given["passwords"]).read_text(),
        "list the folder of another job": lambda: os.listdir(Path(secret).parent),  # noqa: PTH208
        "read it in a thread": lambda: _in_thread(lambda: Path(secret).read_text()),
        "read it in a process": lambda: _in_process(secret),
        "write to it": lambda: Path(secret).open("a"),
        "write beside it": lambda: Path(secret).with_name("new").write_text("x"),
        "replace its own input": lambda: Path(sys.argv[1]).write_text("x"),
        "open it to everybody": lambda: Path(secret).chmod(0o666),
        "change rights of a file that it reads": lambda: _change_rights_by_descriptor(given["model"]),
        "give it away": lambda: os.chown(secret, 65534, 65534),
        "change its times": lambda: os.utime(secret, (0, 0)),
        "mark it": lambda: os.setxattr(secret, "user.mark", b"x"),
        "watch its folder": lambda: _libc("inotify_init1", 0),
        "send a datagram to a socket in the file system": lambda: _send_datagram(given["datagrams"]),
        "share memory with other programs": _share_memory,
        "use memory of other programs": lambda: _attach(given["memory"]),
        "send a message to other programs": lambda: _libc(
            "msgsnd", given["messages"], ctypes.create_string_buffer(b"\x01" + bytes(8)), 0, 0
        ),
        "begin a session, which outlives it": lambda: _leave(start_new_session=True),
        "begin a process group, which outlives it": lambda: _leave(process_group=0),
        "leave a namespace": lambda: _libc("unshare", 0x10000000),
        "begin a namespace": _clone_namespaces,
        "link to it": lambda: os.link(secret, out / "linked"),
        "read the supervisor's environment": lambda: Path(f"/proc/{pid}/environ").read_bytes(),
        "read the supervisor's memory": lambda: Path(f"/proc/{pid}/mem").open("rb"),
        "trace the supervisor": lambda: _trace(pid),
        "signal the supervisor": lambda: os.kill(pid, signal.SIGUSR2),
        "limit the supervisor": lambda: _limit(pid),
        "slow the supervisor down": lambda: os.setpriority(os.PRIO_PROCESS, pid, 19),
        "slow every process of its user down": lambda: os.setpriority(os.PRIO_USER, 0, 1),
        "slow the supervisor's files down": lambda: _set_priority_of_disk(pid),
        "choose the supervisor's processors": lambda: os.sched_setaffinity(pid, os.sched_getaffinity(pid)),
        "change attributes of a file that it reads": lambda: _change_attributes(given["model"]),
        "watch a folder that it reads": lambda: _be_told(Path(os.__file__).parent),
        "lease a file that it reads": lambda: _lease(given["model"]),
        "schedule the supervisor when idle": lambda: os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0)),
        "connect to the broker": lambda: _connect(port),
        "bind a port": _bind,
        "send UDP": lambda: _send_udp(port),
        "connect to a socket in the file system": lambda: _connect_unix(given["socket"]),
        "run what it wrote": lambda: _run_written(out),
    }


def _allowed(given: dict[str, Any], out: Path) -> dict[str, Callable[[], object]]:
    return {
        "read its model": lambda: Path(given["model"]).read_text(),
        "write its folder": lambda: (out / "weights").write_text("weights"),
        "move in its folder": lambda: _move(out),
        "write a temporary file": lambda: (Path(os.environ["TMPDIR"]) / "t").write_text("x"),
        "keep a cache": lambda: Path("~/.cache/torch").expanduser().mkdir(parents=True),
        "connect a pair of sockets": _use_pair,
        "end its own process": lambda: subprocess.Popen([sys.executable, "-c", "input()"]).kill(),
        "use /dev/null": lambda: Path("/dev/null").write_text("x"),
    }


def main(sink: EventSink, spec_file: Path) -> Message | None:
    given = json.loads(spec_file.read_text())
    out = Path(given["out_dir"])
    log = event_pb2.Log(step=1)
    for name, attempt in {**_attempts(given, out), **_allowed(given, out)}.items():
        try:
            attempt()
        except OSError as error:
            log.extras[name] = float(error.errno or -1)
        else:
            log.extras[name] = 0.0
    sink.emit(log)
    return stage_result_pb2.TrainingResult(total_steps=1)


def _warm_up() -> None:
    if "WITH_THREAD" in os.environ:
        threading.Thread(target=threading.Event().wait, daemon=True).start()


if __name__ == "__main__":
    wait_for_input(_warm_up)
    run_child(main)
