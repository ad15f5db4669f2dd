"""`ftf demo`: starts a temporary system, fine-tunes a small model and shows the result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.table import Table

import standalone
from finetuneflow import Client
from finetuneflow.cli.advice import ftf
from finetuneflow.cli.live import follow
from finetuneflow.cli.outcome import show_failure
from finetuneflow.cli.session import count
from finetuneflow.resources.job import Job
from standalone.guard import guarded
from standalone.home import default_home
from standalone.ports import free_port
from standalone.processes import StartFailed, tail

_MODEL = "smollm2-135m"
_RECIPE = "cpu-demo"
_STOP_SECONDS = 30.0
# The service whose log explains a failure in a stage.
_SERVICE = {"PREFLIGHT": "probe", "TRAINING": "trainer", "EVALUATION": "evaluator", "EXPORT": "exporter"}


@dataclass(frozen=True)
class _Running:
    """An `ftf up` that the demo has started."""

    process: subprocess.Popen[str]
    address: str
    token: str
    ca: str
    logs: Path


def demo(console: Console, output: Path, *, keep: bool) -> bool:
    """Runs the demo and returns True if the job succeeded.

    The package is saved in `output`; with `keep` the server keeps running. A KeyboardInterrupt stops all processes that
    were started and is raised again. Raises StartFailed.
    """
    output = output.absolute()
    home = Path(tempfile.mkdtemp(prefix="finetuneflow-demo-"))
    running: _Running | None = None
    succeeded = False
    try:
        _share_models(home)
        console.print("Starting gateway, probe, trainer, evaluator, exporter and nats-server ...")
        running = _start(home, keep=keep)
        succeeded = _fine_tune(console, running, output)
    finally:
        if running is None or not (keep and succeeded):
            if running is not None:
                _stop(running.process)
            shutil.rmtree(home, ignore_errors=True)
    if keep and succeeded:
        console.print(
            f"\nThe server keeps running at {running.address}, in {home}. Stop it: kill {running.process.pid}"
        )
    elif succeeded:
        console.print("\nThe server and all its processes are stopped.")
    return succeeded


def _share_models(home: Path) -> None:
    # The model is unpacked once, into the user's own home, and reused by the next demo and the first `ftf up`.
    models = default_home() / "models"
    default_home().mkdir(parents=True, exist_ok=True, mode=0o700)
    models.mkdir(exist_ok=True)
    (home / "models").symlink_to(models, target_is_directory=True)


def _start(home: Path, *, keep: bool) -> _Running:
    logs = home / "logs"
    logs.mkdir()
    program = [sys.executable, "-m", "finetuneflow.cli"]
    up = [*program, "up", "--home", str(home), "--port", str(free_port()), "--json"]
    env = os.environ | {"PYTHONSAFEPATH": "1"}
    if not keep:
        # The user's own file must not keep the key of a server that is gone.
        env["FTF_CREDENTIALS"] = str(home / "credentials.json")
    with (logs / "up.log").open("wb") as log:
        process = subprocess.Popen(
            up if keep else guarded(up),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=env,
            start_new_session=True,
        )
    try:
        status = _until_up(process.stdout, logs)
        # Not from the environment: there the user has the key and the authority of another server.
        token = (home / "operator.key").read_text("ascii").strip()
        return _Running(process, str(status["address"]), token, str(status["ca"]), logs)
    except BaseException:
        _stop(process)
        raise


def _until_up(lines: IO[str] | None, logs: Path) -> dict[str, object]:
    for line in lines or ():
        status: dict[str, object] = json.loads(line)
        if status["state"] == "up":
            return status
    raise StartFailed(f"`ftf up` ended before it was ready:\n{tail(logs / 'up.log')}")


def _stop(process: subprocess.Popen[str]) -> None:
    # Two signals skip the drain: the home is deleted, and with it the checkpoints that a drain would save.
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
    try:
        # Reads its last status lines: a full pipe would block it.
        process.communicate(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _fine_tune(console: Console, running: _Running, output: Path) -> bool:
    data = _example_data()
    with Client(running.address, token=running.token, ca=running.ca) as client:
        train, held_out = data / "demo_train.jsonl", data / "demo_heldout.jsonl"
        console.print(f"Uploading {_rows(train)} questions and answers, and {_rows(held_out)} held-out ones ...")
        job = client.jobs.create(
            base_model=_MODEL, training_data=train, evaluation_data=held_out, recipe=_RECIPE, display_name="demo"
        )
        # Without the outcome that `ftf train` shows: its commands need a server that keeps running.
        job = follow(client, job.id, console=console, outcome=False)
        if job.state != "SUCCEEDED":
            _print_failure(console, job, running.logs, output)
            return False
        client.jobs.download(job.id, output)
        _print_result(console, client, job, output)
    return True


def _example_data() -> Path:
    """Returns the folder with the example rows: inside this package in a wheel, beside it in a checkout."""
    package = Path(standalone.__file__).parent
    return next(folder for folder in (package / "data", package.parent / "examples" / "data") if folder.is_dir())


def _rows(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _print_failure(console: Console, job: Job, logs: Path, output: Path) -> None:
    console.print()
    show_failure(job, console)
    log = logs / f"{_SERVICE.get(job.stage, 'gateway')}.log"
    console.print(f"\nThe end of {log.name}:\n{tail(log)}")
    kept = output / "logs"
    shutil.copytree(logs, kept, dirs_exist_ok=True)
    console.print(f"\nAll logs are in {kept}.", style="yellow")


def _print_result(console: Console, client: Client, job: Job, output: Path) -> None:
    result = client.evaluations.get(job.evaluation_id).result
    console.print(f"\nThe package: {output / 'finetuneflow_export.zip'}\nIts report:  {output / 'report.md'}")
    if result is not None and result.base_loss is not None and result.tuned_loss is not None:
        console.print(
            f"Held-out loss, on {count(result.num_examples, 'row')} not used in the training: "
            f"base {result.base_loss:.3f}, tuned {result.tuned_loss:.3f} nats per token."
        )
    if result is not None and result.samples:
        sample = result.samples[0]
        console.print(f"\n{sample.instruction}", style="bold")
        table = Table(expand=True)
        for heading in ("base", "tuned", "expected (the docstring)"):
            table.add_column(heading, ratio=1)
        table.add_row(sample.base_output, sample.model_output, sample.expected_output)
        console.print(table, soft_wrap=False)
    console.print('\nTo use your own file, with lines of {"question": ..., "answer": ...}:\n')
    console.print(f"  {ftf('up')}")
    console.print(f"  {ftf(f'train YOURS.jsonl --model {_MODEL} --recipe {_RECIPE}')}    # in another terminal")
