"""Trains an adapter by the trainer's child alone, without broker, gateway and database.

`python examples/train_without_broker.py MODEL ROWS OUT [STEPS]`: MODEL is a folder with config.json, safetensors and
tokenizer, ROWS a file of rows, OUT a new folder. The checkpoints are in OUT/out/checkpoints.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from engine.config.job import job_config
from engine.data.prepare import prepare

ROOT = Path(__file__).resolve().parents[1]


def write_input(model: Path, rows: Path, out: Path, steps: int) -> Path:
    """Does what preflight and the supervisor do for a job; returns the child's input."""
    # What `ftf validate` calls automatic has to be decided: there is no preflight.
    config = job_config(
        {
            "base_model": model.name,
            "training_data": [{"dataset": "rows"}],
            "method": "lora",
            "resources": {"gpus": 0},
            "hyperparameters": {
                "max_steps": steps,
                "max_length": 512,
                "precision": "fp32",
                "optim": "adamw_torch",
                "per_device_train_batch_size": 4,
                "per_device_eval_batch_size": 4,
                "gradient_accumulation_steps": 1,
                "gradient_checkpointing": False,
                "packing": False,
                "group_by_length": False,
                "warmup_steps": 0,
                "logging_steps": 1,
                "eval_steps": max(1, steps // 2),
                "save_steps": max(1, steps // 2),
            },
        }
    )
    (out / "out").mkdir(parents=True)
    prepare(config, model, {"rows": rows}, out / "data", lambda *_: None)
    child_input = {
        "config": config.model_dump(mode="json"),
        "model": {"path": str(model), "id": model.name, "revision": "", "weights_sha256": ""},
        "data_dir": str(out / "data"),
        "out_dir": str(out / "out"),
        "total_steps": steps,
        "threads": os.cpu_count() or 1,
    }
    file = out / "input.json"
    file.write_text(json.dumps(child_input))
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "rows", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("steps", type=int, nargs="?", default=20)
    given = parser.parse_args()
    out = given.out.resolve()
    file = write_input(given.model.resolve(), given.rows.resolve(), out, given.steps)
    command = [sys.executable, "-m", "services.trainer.worker", str(file)]
    sys.exit(subprocess.run(command, cwd=out, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False).returncode)


if __name__ == "__main__":
    main()
