"""A small real server to supervise: `python child_server.py HOST:PORT LOG [stubborn]`.

It appends `started PID` to the file LOG, answers health checks with SERVING, and on SIGTERM appends `stopped PID` and
ends; a stubborn one ignores SIGTERM.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from chassis.server.grpc_server import serve


async def main(address: str, log: Path, *, stubborn: bool) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, (lambda: None) if stubborn else stop.set)
    with log.open("a") as file:
        file.write(f"started {os.getpid()}\n")
    server = await serve(listen=address)
    await stop.wait()
    await server.stop(0)
    with log.open("a") as file:
        file.write(f"stopped {os.getpid()}\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), stubborn="stubborn" in sys.argv))
