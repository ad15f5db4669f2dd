"""Confines a child with Landlock, seccomp and limits, before the first instruction of its program.

`confined` puts this file before the program's command: it runs by path, confines its own process with the standard
library alone, and becomes the program. Nothing that the program does can undo it, and whatever it starts inherits it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import resource
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

if __name__ == "__main__":
    # At the end: no module of an installed package is taken for one of the standard library.
    sys.path.append(str(Path(__file__).parents[2]))

from chassis.security import confinement_filter, landlock, network_namespace

_SYSTEM_PROGRAMS: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt/rocm")
_SYSTEM_FACTS: Final = (
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types", "/etc/fonts"),
    *("/sys/devices", "/sys/fs/cgroup", "/sys/bus/pci", "/sys/class/drm", "/sys/class/kfd", "/sys/module"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys", "/proc/driver", "/proc/devices"),
)
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/dri", "/dev/kfd")
_KEPT_CAPABILITIES: Final = (1, 2)
"""Those that let root read and write files of others, which Landlock restricts."""
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 4, 24, 38


@dataclass(frozen=True)
class ChildLimits:
    """Limits of each process of a child."""

    file_bytes: int = 256 << 30
    """Size of a file that it writes."""
    memory_bytes: int = 0
    """Memory that it may reserve for writing (RLIMIT_DATA); 0: unlimited. A limit of its address space would be of no
    use: torch reserves several times what it uses, and CUDA all that there is."""


@dataclass(frozen=True)
class Files:
    """The paths that a child may use beside the system's. What lies below a path belongs to it."""

    programs: Sequence[str]
    """Read, and run."""
    folders: Sequence[str]
    """Their names are listed."""
    reads: Sequence[str]
    writes: Sequence[str]
    """Read and written. Nothing in them can be run."""

    @classmethod
    def of(cls, reads: Iterable[Path], writes: Iterable[Path]) -> Files:
        """Adds this process's interpreter and modules."""
        programs, folders = _code()
        return cls(programs, folders, [str(path) for path in reads], [str(path) for path in writes])


Network = Literal["none", "own", "own_or_ephemeral", "ephemeral"]
"""The network of a child: none; one of its own, through which only its processes reach each other over TCP; or the
ephemeral ports of the system's network, on which no service listens: where the system refuses a network of its own, or
always, for processes on several machines."""


@dataclass(frozen=True)
class Confinement:
    """Limits, readable and writable files, and network access of a child."""

    limits: ChildLimits
    files: Files | None
    """None: files are not restricted yet. A warm spare completes its imports and calls `restrict_files` then."""
    network: Network = "none"


def confined(argv: Sequence[str], confinement: Confinement) -> list[str]:
    """Returns the command that runs `argv` confined. On systems other than Linux, `argv` itself."""
    if sys.platform != "linux":
        return list(argv)
    return [sys.executable, "-I", "-S", __file__, json.dumps(dataclasses.asdict(confinement)), *argv]


def missing() -> list[str]:
    """Returns what this kernel cannot refuse to a child, as sentences; nothing on Linux 6.12 or newer."""
    found = []
    version = landlock.abi()
    if version < landlock.MIN_ABI:
        found.append(
            "A child can read and write every file that its user can: the kernel has no Landlock. Use Linux 5.19 or "
            "newer with landlock among its security modules (lsm=)."
        )
    elif version < landlock.SIGNALS_ABI:
        found.append("A child can end other processes of its user: that takes Linux 6.12 or newer.")
    if not confinement_filter.available():
        found.append(
            "A child can use the network, and change the rights of its user's files: the system has no seccomp filter "
            "for this machine."
        )
    return found


def program_folder_around(folder: Path) -> str:
    """Returns the folder of programs, readable to every child, that a folder lies in; empty if it lies in none."""
    real = folder.resolve()
    return next((path for path in (*_SYSTEM_PROGRAMS, *_code()[0]) if real.is_relative_to(Path(path).resolve())), "")


def restrict_files(files: dict[str, Any]) -> None:
    """Restricts files in a child that was started with `files=None`. `files` holds the fields of `Files`."""
    check_single_thread()
    landlock.restrict(_grants(Files(**files)), ports=landlock.ALL_PORTS)


def check_single_thread() -> None:
    """Raises RuntimeError if this process has other threads: they would keep their access to files."""
    if sys.platform == "linux" and (threads := len(list(Path("/proc/self/task").iterdir()))) > 1:
        raise RuntimeError(f"an import has started {threads - 1} threads, which cannot be confined any more")


def hide_from_children() -> None:
    """Closes this process's memory and environment to other processes of its user, also where Landlock is missing.

    Does not apply to what it starts.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _confine(confinement: Confinement) -> None:
    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: confinement.limits.file_bytes}
    if confinement.limits.memory_bytes:
        limits[resource.RLIMIT_DATA] = confinement.limits.memory_bytes
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        least = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (least, least))
    # When memory runs out, the kernel ends the child before its supervisor.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500", "ascii")
    own_network = confinement.network in ("own", "own_or_ephemeral") and network_namespace.enter()
    if confinement.network == "own" and not own_network:
        sys.exit("This system refuses a child a network of its own, in which its processes could reach each other.")
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    for capability in range(64):
        if capability not in _KEPT_CAPABILITIES:
            # Of a process of root; any other has none, and the call fails.
            prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    if prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS) failed")
    grants = None if confinement.files is None else _grants(confinement.files)
    ports: Iterable[int] = ()
    if confinement.network != "none":
        # In a network of its own there is nothing else to reach.
        ports = landlock.ALL_PORTS if own_network else network_namespace.ephemeral_ports()
    landlock.restrict(grants, ports=ports)
    if confinement_filter.available():
        confinement_filter.refuse_calls(network=confinement.network != "none")


def _grants(files: Files) -> dict[str, int]:
    for path in _SYSTEM_FACTS:
        # A rule is for a file as the kernel knows it. When memory is short, it forgets those in /proc that nobody has
        # open, and later takes them for other files.
        if path.startswith("/proc/"):
            with contextlib.suppress(OSError):
                os.set_inheritable(os.open(path, os.O_PATH), True)
    gpus = [str(path) for path in Path("/dev").glob("nvidia*")]
    wanted = (
        (landlock.RUN, (*_SYSTEM_PROGRAMS, *files.programs)),
        (landlock.LIST, files.folders),
        (landlock.READ, (*_SYSTEM_FACTS, *files.reads)),
        (landlock.USE_DEVICE, (*_DEVICES, *gpus)),
        (landlock.WRITE, files.writes),
    )
    grants: dict[str, int] = {}
    for rights, paths in wanted:
        for path in paths:
            grants[path] = grants.get(path, 0) | rights
    return grants


def _code() -> tuple[list[str], list[str]]:
    """Returns the paths of this process's interpreter and modules, and the folders whose names an import lists."""
    programs = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, str(Path(sys.executable).parent)}
    programs |= set(filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)))
    folders = set()
    for entry in map(Path, filter(None, sys.path)):
        if entry.name in ("site-packages", "dist-packages") or entry.is_file():
            programs.add(str(entry))
        elif entry.is_dir() and not any(entry.is_relative_to(program) for program in programs):
            # A source checkout may hold much else: a home folder with keys, for one.
            folders.add(str(entry))
            programs |= {str(child) for child in entry.iterdir() if _is_module(child)}
    return sorted(programs), sorted(folders)


def _is_module(path: Path) -> bool:
    return path.suffix in (".py", ".so") or (path / "__init__.py").exists() or path.suffix == ".dist-info"


def _main(given: str, argv: list[str]) -> None:
    fields = json.loads(given)
    fields["limits"] = ChildLimits(**fields["limits"])
    fields["files"] = fields["files"] and Files(**fields["files"])
    _confine(Confinement(**fields))
    os.execvp(argv[0], argv)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2:])
