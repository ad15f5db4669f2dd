"""A job whose rows do not fit into its machine's memory, on the real stack."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetuneflow import Client
from tests.e2e.conftest import System
from tests.tiny_models import make_tiny_model

HEADROOM_MIB = 600
# Every Python process reads it when it starts. A training child may take only so much memory more than it has once its
# model is loaded.
LIMIT = f"""
import sys

def limit(event, args):
    if event == "open" and str(args[0]).endswith("train/state.json"):
        import resource
        pages = int(open("/proc/self/statm").read().split()[0])
        most = pages * resource.getpagesize() + {HEADROOM_MIB} * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))

if "services.trainer.worker" in sys.orig_argv:
    sys.addaudithook(limit)
"""


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(LIMIT)
    models = {"deep": str(make_tiny_model(tmp_path / "deep", num_layers=12))}
    system = System(tmp_path / "home", FTF_MODELS=json.dumps(models), PYTHONPATH=str(tmp_path / "site"))
    system.start()
    yield system
    system.stop()


@pytest.mark.long
def test_micro_batch_is_halved_until_it_fits(system: System, tmp_path: Path) -> None:
    """Users need not know the memory of a row, and no attempt is used up."""
    rows = tmp_path / "rows.jsonl"
    texts = (" ".join(f"{row * word % 97}" for word in range(1, 400)) for row in range(40))
    rows.write_text("".join(json.dumps({"question": f"Say {text[:9]}", "answer": text}) + "\n" for text in texts))
    with Client(system.address) as client:
        job = client.jobs.create(
            base_model="deep",
            training_data=str(rows),
            method="lora",
            max_attempts=1,
            hyperparameters={
                "max_steps": 2,
                "max_length": 512,
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 1,
                "gradient_checkpointing": False,
                "precision": "fp32",
                "optim": "adamw_torch",
                "logging_steps": 1,
            },
        )
        for _ in client.jobs.watch(job.id):
            pass
        job = client.jobs.get(job.id)
        events = list(client.jobs.events(job.id))
        curves = client.jobs.metrics(job.id)

    endings = [str(event.proto.stage_failed) for event in events if event.kind == "stage_failed"]
    assert (job.state, job.failed_attempts) == ("SUCCEEDED", 0), "\n".join(endings)
    resolved = [e.proto.config_resolved.resolved_spec.hyperparameters for e in events if e.kind == "config_resolved"]
    sizes = [(hyper.per_device_train_batch_size, hyper.gradient_accumulation_steps) for hyper in resolved]
    assert sizes in ([(8, 1), (4, 2)], [(8, 1), (4, 2), (2, 4)])
    warnings = [event.proto.warning for event in events if event.kind == "warning"]
    assert sum(warning.reason == "HOST_OUT_OF_MEMORY" for warning in warnings) == len(sizes) - 1
    # A step that was trained before memory ran out is trained again, and stands once in the curve.
    assert list(curves["loss"].steps) == [1, 2]
