"""A warm spare: a child that has completed its imports and waits for its input, which saves seconds of a cold start.

Its counterpart in the child is chassis.child.warm_start.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from chassis import failpoints
from chassis.child.child_process import LINGER_SECONDS, WORKDIR, Child, ChildCommand
from chassis.security.confinement import ChildLimits, Confinement, Files, Network

_log = logging.getLogger(__name__)

_START_SECONDS: Final = 60.0
"""Time that a spare gets to confirm its start. It may still be importing."""
_BACKOFF_SECONDS: Final = (1.0, 5.0, 30.0, 300.0)
_SCRATCH: Final = "scratch"
"""Folder for a child's temporary files and caches, below the one where it works."""


@dataclass(frozen=True)
class SpareCommand:
    """The command that starts a child without an input."""

    argv: Sequence[str]
    """The argv of a ChildCommand without the path of the input."""
    env: Mapping[str, str] = field(default_factory=dict)


class Spare:
    """Starts the children of a process, from a warm spare where possible.

    There is at most one spare, it is used once, and there is none beside a child that computes on the CPU: it would
    take cores and memory from it. If the spare fails, the child is started cold.

    Every child but a driver is confined: it reads the folder where it works and `reads` of its command, writes
    `out_dir` and a scratch folder, and uses no network. A spare is confined in this way before it learns its input.
    """

    def __init__(
        self,
        command: SpareCommand | None,
        folder: Path,
        *,
        limits: ChildLimits | None = None,
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        """`folder` is the spare's folder; without a command there is no spare. `linger_seconds`: see `Child.start`."""
        self._limits = limits or ChildLimits()
        self._command = command
        self._folder = folder
        self._linger_seconds = linger_seconds
        self._child: Child | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._watchers: set[asyncio.Task[None]] = set()
        self._computing: set[Child] = set()
        self._open = False

    @property
    def pid(self) -> int:
        """Process id of the spare; 0 if there is none."""
        return self._child.pid if self._child else 0

    def open(self) -> None:
        """Starts a spare, and another one whenever it was used."""
        self._open = True
        self._start_if_wanted()

    async def close(self) -> None:
        """Ends the spare; no other one is started."""
        self._open = False
        await self._dismiss()

    async def start(self, command: ChildCommand, cwd: Path) -> Child:
        """Starts a child that works on the command's input in `cwd`. Raises OSError if it cannot be started."""
        for folder in (command.out_dir, scratch := cwd / _SCRATCH):
            folder.mkdir(parents=True, exist_ok=True)
        writes = [command.out_dir, scratch, *command.writes, *failpoints.folders()]
        files = Files.of(reads=[cwd, *command.reads], writes=writes)
        child = await self._take(command, files, cwd)
        if not child:
            env = {**command.env, **_late_environment(command, cwd)}
            if command.driver:
                child = await Child.start(command.argv, env, cwd, linger_seconds=self._linger_seconds)
            else:
                child = await self._start(command.argv, env, cwd, files, command.network)
        if self._command:
            if command.on_cpu:
                self._computing.add(child)
            watcher = asyncio.create_task(self._watch(child), name=f"beside-{child.pid}")
            self._watchers.add(watcher)
            watcher.add_done_callback(self._watchers.discard)
            try:
                await self._start_or_dismiss()
            except BaseException:
                # The cancelled caller gets no child that it could close.
                child.close()
                raise
        return child

    async def _take(self, command: ChildCommand, files: Files, cwd: Path) -> Child | None:
        if command.cold or command.driver or command.network != "none":
            return None
        child, self._child = self._child, None
        await self._dismiss()
        if not child or not self._command:
            return None
        asked = SpareCommand(list(command.argv[:-1]), dict(command.env))
        if asked != SpareCommand(list(self._command.argv), dict(self._command.env)):
            # The next attempt most likely needs the same.
            self._command = asked
            child.close()
            return None
        try:
            start = {
                "input": command.argv[-1],
                "cwd": str(cwd),
                "env": _late_environment(command, cwd),
                "files": dataclasses.asdict(files),
            }
            child.control(f"start {json.dumps(start)}")
            async with asyncio.timeout(_START_SECONDS), contextlib.aclosing(child.frames()) as frames:
                async for _ in frames:
                    child.begin()
                    return child
            _log.warning("the warm spare ended instead of starting: %s", child.last_lines()[-3:])
        except (TimeoutError, ValueError) as error:
            _log.warning("the warm spare did not start: %s", error or "no confirmation in time")
        except BaseException:
            child.close()
            raise
        child.close()
        return None

    async def _watch(self, child: Child) -> None:
        await child.wait()
        self._computing.discard(child)
        await self._start_or_dismiss()

    async def _start_or_dismiss(self) -> None:
        if self._computing:
            await self._dismiss()
        else:
            self._start_if_wanted()

    def _start_if_wanted(self) -> None:
        if self._open and self._command and not self._computing and not self._keeper:
            self._keeper = asyncio.create_task(self._run_spare(self._command), name="spare")

    async def _dismiss(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper:
            keeper.cancel()
            await asyncio.wait({keeper})

    async def _run_spare(self, command: SpareCommand) -> None:
        for delay in itertools.chain(_BACKOFF_SECONDS, itertools.repeat(_BACKOFF_SECONDS[-1])):
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                child = self._child = await self._start(command.argv, command.env, self._folder, None)
            except OSError as error:
                _log.warning("no warm spare could be started: %s", error)
            else:
                try:
                    await child.wait()
                finally:
                    # Otherwise an attempt has taken it.
                    if self._child is child:
                        self._child = None
                        child.close()
                _log.warning("the warm spare ended; children start cold meanwhile: %s", child.last_lines()[-3:])
            await asyncio.sleep(delay)

    async def _start(
        self, argv: Sequence[str], env: Mapping[str, str], cwd: Path, files: Files | None, network: Network = "none"
    ) -> Child:
        confinement = Confinement(self._limits, files, network)
        return await Child.start(argv, env, cwd, confinement=confinement, linger_seconds=self._linger_seconds)


def _late_environment(command: ChildCommand, cwd: Path) -> dict[str, str]:
    # Libraries keep caches in the home folder, which a child cannot use.
    scratch = str(cwd / _SCRATCH)
    return {**command.late_env, WORKDIR: str(cwd), "HOME": scratch, "TMPDIR": scratch}
