"""Runs a short job on this machine and draws what `ftf train` showed: the pictures of README.md.

Writes train-running.svg (the display while the model is trained), train-finished.svg (the result) and train-loss.png
(the plot in the job's package). Every figure in them comes from the job that was run.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from rich.console import Console, RenderableType

from benchmarks.stack import Part
from finetuneflow import Client
from finetuneflow.cli.console import SafeConsole
from finetuneflow.cli.live import render, stages_line
from finetuneflow.cli.outcome import show_outcome
from finetuneflow.cli.plot import plot
from finetuneflow.cli.view import JobView
from finetuneflow.resources.job import Job
from standalone.home import default_home
from standalone.ports import free_port

_ROOT: Final = Path(__file__).parents[1]
_TRAIN, _HELD_OUT = "examples/data/demo_train.jsonl", "examples/data/demo_heldout.jsonl"
_MODEL, _RECIPE = "smollm2-135m", "cpu-demo"
_HYPERPARAMETERS: Final = {"eval_steps": 8}
"""Fields set beside the recipe's: six evaluations make a curve."""
_COMMAND: Final = f"$ ftf train {_TRAIN} --eval {_HELD_OUT} \\\n      --model {_MODEL} --recipe {_RECIPE}" + "".join(
    f" --set hyperparameters.{name}={value}" for name, value in _HYPERPARAMETERS.items()
)
_WIDTH: Final = 116
_DRAWN_AT: Final = 0.6
"""Share of the steps after which the running display is drawn: by then there are evaluations to show."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=_ROOT / "docs" / "images", help="folder for the pictures")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="finetuneflow-pictures-") as name:
        home = Path(name)
        # The unpacked model is shared with the user's own installation, as in `ftf demo`.
        models = default_home() / "models"
        models.mkdir(parents=True, exist_ok=True)
        (home / "models").symlink_to(models, target_is_directory=True)
        argv = ["up", "--home", home, "--port", free_port(), "--json"]
        with Part("finetuneflow.cli", *argv, log=home / "up.log") as system:
            status = system.hear()
            while status["state"] != "up":
                status = system.hear()
            with Client(status["address"]) as client:
                _draw(client, output)
    print(f"Drawn: {', '.join(str(path) for path in sorted(output.iterdir()))}")


def _draw(client: Client, output: Path) -> None:
    job = client.jobs.create(
        base_model=_MODEL,
        training_data=_ROOT / _TRAIN,
        evaluation_data=_ROOT / _HELD_OUT,
        recipe=_RECIPE,
        hyperparameters=_HYPERPARAMETERS,
        display_name=f"{_MODEL} on demo_train.jsonl",
    )
    print(f"Job {job.id} runs; it takes a few minutes.")
    view = JobView(job.id, title=f"{job.id} · {_MODEL} · {_RECIPE}")
    drawn = False
    for event in client.jobs.watch(job.id):
        view.feed(event)
        if not drawn and view.log is not None and view.log.step >= _DRAWN_AT * view.log.total_steps:
            _save(output / "train-running.svg", _COMMAND, f"Job {job.id}", render(view))
            drawn = True
    job = client.jobs.get(job.id)
    if job.state != "SUCCEEDED":
        raise SystemExit(f"The job ended as {job.state}: {job.reason}: {job.message}")
    _save_outcome(client, job, view, output)
    _save_plot(client, job, output)


def _save(path: Path, *parts: RenderableType) -> None:
    console = _recorder()
    for part in parts:
        console.print(part)
    console.save_svg(str(path), title="ftf train")


def _save_outcome(client: Client, job: Job, view: JobView, output: Path) -> None:
    console = _recorder()
    console.print(_COMMAND)
    console.print(f"Job {job.id}")
    console.print(stages_line(view))
    console.print(plot({"loss": view.losses, "eval loss": view.eval_losses}, width=72))
    show_outcome(client, job, console)
    console.save_svg(str(output / "train-finished.svg"), title="ftf train")


def _save_plot(client: Client, job: Job, output: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        client.jobs.download(job.id, folder)
        (package,) = Path(folder).rglob("finetuneflow_export.zip")
        with zipfile.ZipFile(package) as archive:
            (output / "train-loss.png").write_bytes(archive.read("train_loss.png"))


def _recorder() -> Console:
    return SafeConsole(
        record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor", width=_WIDTH, height=40
    )


if __name__ == "__main__":
    main()
