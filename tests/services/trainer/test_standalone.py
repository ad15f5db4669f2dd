"""The trainer's child without broker, gateway and database."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[3]
JOBSET = yaml.safe_load((ROOT / "deploy/kubernetes/training-jobset.yaml").read_text())


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_example_trains_an_adapter(tiny_model: Path, tmp_path: Path) -> None:
    """Whoever debugs the trainer, or runs it under another scheduler, starts from this file."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"question": f"What is {n}?", "answer": f"It is {n}."}) + "\n" for n in range(40))
    )
    ended = run("examples/train_without_broker.py", tiny_model, rows, tmp_path / "run", 4)
    assert ended.returncode == 0, ended.stderr
    assert "step=4" in ended.stdout and "stage_completed" in ended.stdout
    assert load_file(tmp_path / "run/out/checkpoints/step-4/adapter_model.safetensors")


def test_wrong_call_says_what_is_missing(tmp_path: Path) -> None:
    ended = run("-m", "services.trainer.worker")
    assert (ended.returncode, ended.stderr.strip()) == (1, "usage: python -m services.trainer.worker input.json")
    ended = run("-m", "services.trainer.worker", tmp_path / "none.json")
    assert (ended.returncode, ended.stderr.strip()) == (1, f"no such file: {tmp_path / 'none.json'}")


def _pod(jobset: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the job of a JobSet with one, and the specification of its pods."""
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    return job, job["template"]["spec"]


def test_pods_of_a_training_on_kubernetes_can_not_gain_rights() -> None:
    """It is not confined as a child is: what the pod allows is all that holds it."""
    _, pod = _pod(JOBSET)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.long
def test_a_training_on_kubernetes_has_what_its_processes_need(make_input: Callable[..., Any], tmp_path: Path) -> None:
    """Whoever applies the file has no gateway that says what is missing."""
    job, pod = _pod(JOBSET)
    (container,) = pod["containers"]
    (replicated,) = JOBSET["spec"]["replicatedJobs"]
    name = JOBSET["metadata"]["name"]
    given = {each["name"]: each.get("value", "") for each in container["env"]}
    assert given["MASTER_ADDR"] == f"{name}-{replicated['name']}-0-0.{name}"
    assert job["completions"] == job["parallelism"] == int(given["WORLD_SIZE"])
    child_input = make_input("out", total_steps=2, logging_steps=1, resources={"world_size": int(given["WORLD_SIZE"])})
    file = tmp_path / "input.json"
    file.write_text(child_input.model_dump_json())
    command = [sys.executable if word == "python" else word for word in container["command"][:-1]] + [str(file)]
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "HOME": str(tmp_path)}

    processes = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **given, **own, "RANK": str(index)})
        for index in range(job["completions"])
    ]

    assert [process.wait() for process in processes] == [0, 0]
    assert load_file(tmp_path / "out/checkpoints/step-2/adapter_model.safetensors")
