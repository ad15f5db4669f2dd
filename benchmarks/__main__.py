"""Runs all benchmarks with short defaults and prints one table: `python -m benchmarks`."""

import importlib
import platform
import subprocess
from importlib import metadata

import psutil

from benchmarks.table import Row, show

NAMES = (
    "watch_throughput",
    "watch_latency",
    "stalled_watcher",
    "watch_memory",
    "dispatch_latency",
    "restart",
    "metrics_page",
    "prepare",
)


def machine() -> str:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("grpcio", "nats-py", "SQLAlchemy", "protobuf"))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    load = ", ".join(f"{value:.1f}" for value in psutil.getloadavg())
    return (
        f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB, {platform.system()}, "
        f"Python {platform.python_version()}, {versions}; commit {commit.stdout.strip() or 'unknown'}; "
        f"load average before {load}"
    )


def main() -> None:
    print(machine(), flush=True)
    rows: list[Row] = []
    for name in NAMES:
        print(f"{name} …", flush=True)
        rows += importlib.import_module(f"benchmarks.{name}").main()
    show(rows)


if __name__ == "__main__":
    main()
