"""Supervises two servers of child_server.py until it is killed: `python supervisor.py FOLDER`. Prints their pids."""

import asyncio
import json
import sys
from pathlib import Path

import grpc

from standalone.ports import LOOPBACK, free_port
from standalone.processes import Program, SupervisedProcess, serving

CHILD_SERVER = Path(__file__).with_name("child_server.py")


def program(name: str, folder: Path, *options: str, stop_seconds: float = 10.0) -> Program:
    address = f"{LOOPBACK}:{free_port()}"
    argv = (sys.executable, str(CHILD_SERVER), address, str(folder / f"{name}.marks"), *options)
    return Program(name, argv, serving(lambda: grpc.aio.insecure_channel(address)), stop_seconds=stop_seconds)


async def main(folder: Path) -> None:
    kept = [SupervisedProcess(program(name, folder), folder, folder / "logs", print) for name in ("one", "two")]
    await asyncio.gather(*(process.start() for process in kept))
    sys.stdout.write(json.dumps([process.pid for process in kept]) + "\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
