"""Looks at the nodes of a Ray cluster: whether a training can run there, and on what hardware.

`python -m services.trainer.cluster.survey '{"address": …}'` prints a Survey as JSON.
"""

import contextlib
import importlib.metadata
import os
import secrets
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import ray
from google.protobuf import json_format
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from chassis.security import confinement
from services.hardware import read_hardware
from services.trainer.cluster.nodes import DISTRIBUTION, SAME, NodeFacts, Question, Survey, problem_of

_CONNECT_SECONDS: Final = 10.0
_NODE_SECONDS: Final = 60.0
"""Time that all nodes have to answer."""


def main() -> None:
    """Prints a Survey. Exits with status 1 and a traceback only for a defect."""
    question = Question.model_validate_json(sys.argv[1])
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    survey = _survey(question)
    sys.stdout.write(survey.model_dump_json() + "\n")


def look(folder: str, models: Mapping[str, str], node_id: str, address: str, gpus: int) -> str:
    """Runs on a node: reads and answers the trainer's file. Returns NodeFacts as JSON."""
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    facts = NodeFacts(
        id=node_id,
        address=address,
        versions=_versions(),
        missing_models=[name for name, path in models.items() if not Path(path, "config.json").is_file()],
        unconfined=confinement.missing(),
        hardware=json_format.MessageToDict(read_hardware(address, Path(folder)), preserving_proto_field_name=True),
        gpus=gpus,
    )
    try:
        facts.found = Path(folder, "question").read_text("utf-8")
        Path(folder, f"answer-{node_id}").write_text(facts.found, "utf-8")
    except OSError as error:
        facts.found = f"{type(error).__name__}: {error.strerror}"
    return facts.model_dump_json()


def _survey(question: Question) -> Survey:
    try:
        _reach(question.address)
        ray.init(question.address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:500]
        return Survey(
            problem=f"this machine has no node of a Ray cluster at {question.address}: {said}. Start one with "
            "`ray start --address=HEAD:6379 --num-cpus=0`, or correct FTF_TRAINER_RAY_ADDRESS"
        )
    survey = Survey(address=ray.get_runtime_context().gcs_address)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not nodes:
        survey.problem = "no node of the Ray cluster has CPUs for work: start one with `ray start --address=HEAD:6379`"
        return survey
    folder = question.home / f"survey-{secrets.token_hex(8)}"
    folder.mkdir(parents=True)
    try:
        content = secrets.token_hex(16)
        (folder / "question").write_text(content, "utf-8")
        asked = [
            ray.remote(look)
            .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
            .remote(
                str(folder),
                {name: str(path) for name, path in question.models.items()},
                node["NodeID"],
                node["NodeManagerAddress"],
                int(node["Resources"].get("GPU", 0)),
            )
            for node in nodes
        ]
        for alive, facts in zip(nodes, asked, strict=True):
            try:
                survey.nodes.append(NodeFacts.model_validate_json(ray.get(facts, timeout=_NODE_SECONDS)))
            except RayError as error:
                said = " ".join(str(error).split())[-500:]
                survey.problem = (
                    f"node {alive['NodeManagerAddress']} of the Ray cluster cannot run a training: {said}. Install "
                    f"{DISTRIBUTION}[ray] {_versions()[DISTRIBUTION]} there, with the same Python"
                )
                return survey
        for node in survey.nodes:
            answer = _read(folder / f"answer-{node.id}")
            if problem := problem_of(node, content, answer, question.home, _versions()):
                survey.problem = problem
        return survey
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def _reach(address: str) -> None:
    """Raises OSError or ValueError if nothing listens there, which Ray would try for minutes."""
    if address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()


def _versions() -> dict[str, str]:
    found = {}
    for name in SAME:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _read(file: Path) -> str:
    return file.read_text("utf-8") if file.is_file() else ""


if __name__ == "__main__":
    # Nodes import the module by its name, which it does not have here.
    from services.trainer.cluster import survey

    survey.main()
