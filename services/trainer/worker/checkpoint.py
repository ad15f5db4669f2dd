"""From the Trainer's checkpoint-<n> to ours: complete, without pickles of no use, and never touched again."""

from pathlib import Path

from services.trainer.worker.progress import Progress


def publish(trainer_dir: Path, out_dir: Path, progress: Progress) -> str:
    """Moves the checkpoint of the current step to checkpoints/step-<n> below `out_dir`; returns that relative path.

    The folder appears there in one rename, complete.
    """
    folder = trainer_dir / f"checkpoint-{progress.step}"
    # A pickle that names this machine's paths; nothing resumes from it.
    (folder / "training_args.bin").unlink(missing_ok=True)
    (folder / "README.md").unlink(missing_ok=True)
    progress.write(folder)
    relative = f"checkpoints/step-{progress.step}"
    target = out_dir / relative
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(target)
    return relative
