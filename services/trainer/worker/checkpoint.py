"""Publishes the Trainer's checkpoints: complete, without unneeded pickles, never changed afterwards."""

from pathlib import Path
from typing import Final

from chassis.failpoints import failpoint
from services.trainer.worker.progress import CHECKPOINT_FILE, Progress

SCHEDULER_FILE: Final = "scheduler.pt"
_STATE: Final = (CHECKPOINT_FILE, "trainer_state.json", SCHEDULER_FILE)


class IncompleteCheckpoint(Exception):
    """The checkpoint to resume from lacks files."""


def optimizer_file(rank: int) -> str:
    """Returns the name of the file with a rank's share of the optimizer's states, if they are divided."""
    return f"optimizer_{rank}.pt"


def progress_at(folder: Path, world_size: int, *more: str, divided: bool = False) -> Progress:
    """Reads the totals of the checkpoint of `world_size` ranks to resume from, which has the files `more` too.
    `divided`: the optimizer's states are divided among the ranks.

    Raises IncompleteCheckpoint if a file is missing: the Trainer would silently start that part (optimizer, schedule,
    random state) from the beginning.
    """
    random_states = [f"rng_state_{rank}.pth" for rank in range(world_size)] if world_size > 1 else ["rng_state.pth"]
    optimizer = [optimizer_file(rank) for rank in range(world_size)] if divided else ["optimizer.pt"]
    missing = [name for name in (*_STATE, *optimizer, *random_states, *more) if not (folder / name).is_file()]
    if missing:
        raise IncompleteCheckpoint(f"{folder.name} has no {', '.join(missing)}")
    return Progress.read(folder)


def publish(trainer_dir: Path, out_dir: Path, progress: Progress) -> str:
    """Moves the checkpoint of the current step to checkpoints/step-<n> below `out_dir`; returns that relative path.

    The folder appears there in one rename, complete.
    """
    folder = trainer_dir / f"checkpoint-{progress.step}"
    # A pickle with paths of this machine, which a resumed training does not need.
    (folder / "training_args.bin").unlink(missing_ok=True)
    (folder / "README.md").unlink(missing_ok=True)
    progress.write(folder)
    relative = f"checkpoints/step-{progress.step}"
    target = out_dir / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    failpoint("checkpoint.written")
    folder.rename(target)
    failpoint("checkpoint.renamed")
    return relative
