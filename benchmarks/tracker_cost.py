"""Measures what webhooks and trackers cost the steps of a training: the same job with and without them, in turns.

`python -m benchmarks.tracker_cost [--pairs 10] [--steps 100]`

Steps are short and each is logged, so that there are many more events a second than in a usual training. The job with
integrations has a webhook for every event, TensorBoard, and an MLflow server that answers each request after a second.
The 0.1 % of the target is less than what two runs on a shared machine differ by without a cause: the interval of the
ratio says what the run could resolve.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import math
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.job_speed import DEMO, DEMO_HELD_OUT
from benchmarks.stack import Part
from benchmarks.table import Row, show
from finetuneflow import Client, JobCancelled
from standalone.ports import free_port

_SKIPPED: Final = 5
"""First steps that are not counted: they allocate memory."""
_SLOW_SECONDS: Final = 1.0
_SECRET: Final = "whsec_" + base64.b64encode(bytes(32)).decode()
_ANSWERS: Final[Mapping[str, Any]] = {
    "get-by-name": {"experiment": {"experiment_id": "1", "lifecycle_stage": "active"}},
    "search": {},
    "create": {"run": {"info": {"run_id": "r", "run_name": "r", "artifact_uri": ""}, "data": {}}},
}
"""Answers of the MLflow server by the last part of the path; `{}` to all others."""


@dataclass(frozen=True)
class Run:
    """One training."""

    step_seconds: float
    """Mean of the counted steps."""
    delivery_seconds: float
    """Processor time of the delivery process for each step."""


class _Receiver(BaseHTTPRequestHandler):
    """Takes webhooks at once, and is an MLflow server that is slow."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing for each request."""

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        if path != "/hook":
            time.sleep(_SLOW_SECONDS)
        body = json.dumps(_ANSWERS.get(path.rpartition("/")[2], {})).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def _receiver() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def measure(folder: Path, pairs: int, steps: int) -> list[Row]:
    log, env = folder / "up.log", {"FTF_GATEWAY_WEBHOOK_ALLOW": json.dumps(["127.0.0.1"])}
    argv = ("up", "--home", folder / "home", "--port", free_port(), "--json")
    with _receiver() as url, Part("finetuneflow.cli", *argv, env={**os.environ, **env}, log=log) as up:
        status = up.hear()
        while status["state"] != "up":
            status = up.hear()
        (deliveries,) = (child for child in up.process.children(True) if "gateway.deliveries" in child.cmdline())
        integrations: list[Mapping[str, Any]] = [
            {"webhook": {"url": f"{url}/hook", "secret": "hook", "kinds": ["log", "eval", "state_changed"]}},
            {"tensorboard": {}},
            {"mlflow": {"tracking_uri": url}},
        ]
        without: list[Run] = []
        followed: list[Run] = []
        with Client(status["address"]) as client:
            client.secrets.set("hook", _SECRET)
            # Unpacks the model and makes the token shards.
            _train(client, _SKIPPED + 1, [], deliveries)
            for number in range(pairs):
                # The order changes, so that a machine that becomes slower favours neither.
                for ours in (False, True) if number % 2 else (True, False):
                    run = _train(client, steps, integrations if ours else [], deliveries)
                    (followed if ours else without).append(run)
    return [_row(followed, without, steps)]


def _train(client: Client, steps: int, integrations: Sequence[Mapping[str, Any]], deliveries: psutil.Process) -> Run:
    job = client.jobs.create(
        base_model="smollm2-135m",
        training_data=DEMO,
        evaluation_data=DEMO_HELD_OUT,
        recipe="cpu-demo",
        hyperparameters={
            "max_steps": steps,
            "max_length": 64,
            "per_device_train_batch_size": 2,
            "group_by_length": False,
            "logging_steps": 1,
            "eval_steps": steps,
            "save_steps": steps,
        },
        integrations=integrations,
    ).id
    used = 0.0
    seconds = []
    for event in client.jobs.watch(job, kinds=["log"]):
        seconds.append(event.log.seconds_per_step)
        if event.log.step == _SKIPPED:
            # By now it has opened the trackers, and loaded the library of TensorBoard if it is the first time.
            used = _processor_seconds(deliveries)
        if event.log.step == steps:
            break
    used = _processor_seconds(deliveries) - used
    client.jobs.cancel(job)
    with contextlib.suppress(JobCancelled):
        client.jobs.wait(job)
    if len(seconds) != steps:
        raise RuntimeError(f"{job} logged {len(seconds)} of {steps} steps")
    return Run(statistics.mean(seconds[_SKIPPED:]), used / (steps - _SKIPPED))


def _processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _row(followed: Sequence[Run], without: Sequence[Run], steps: int) -> Row:
    ratios = [math.log(a.step_seconds / b.step_seconds) for a, b in zip(followed, without, strict=True)]
    rng = random.Random(0)  # noqa: S311
    means = sorted(statistics.mean(rng.choices(ratios, k=len(ratios))) for _ in range(10_000))
    low, high = (math.exp(means[int(share * len(means))]) for share in (0.025, 0.975))
    seconds, base = (statistics.median(run.step_seconds for run in runs) for runs in (followed, without))
    cost, idle = (statistics.median(run.delivery_seconds for run in runs) for runs in (followed, without))
    beside = [
        f"95 % interval {low:.4f} to {high:.4f}, {len(ratios)} pairs of {steps} steps",
        f"{seconds:.4f} against {base:.4f} s",
        f"processor time of the delivery process {1000 * cost:.2f} against {1000 * idle:.2f} ms a step",
    ]
    return Row(
        "step with webhook, TensorBoard and a slow MLflow server, against none",
        math.exp(statistics.mean(ratios)),
        "x",
        "<= 1.001 x",
        "; ".join(beside),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10, help="the interval needs several")
    parser.add_argument("--steps", type=int, default=100, help=f"steps of a training, more than {_SKIPPED}")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finetuneflow-bench-") as name:
        show(measure(Path(name), given.pairs, given.steps))


if __name__ == "__main__":
    main()
