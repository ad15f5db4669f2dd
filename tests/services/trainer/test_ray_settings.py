"""Settings of a trainer whose trainings run on a Ray cluster, and the hardware that it announces."""

from typing import Any

import pytest
from google.protobuf import json_format
from pydantic import ValidationError

from finetuneflow.v1.hardware_pb2 import Gpu, Hardware
from services.trainer.cluster.nodes import NodeFacts, cluster_hardware, problem_of
from services.trainer.settings import TrainerSettings

GIB = 1 << 30
SAME = {"finetuneflow-server": "0.1.0", "torch": "2.13.0"}


def node(name: str, memory: int, devices: list[Gpu], **facts: Any) -> NodeFacts:
    hardware = Hardware(
        node_id=name,
        cpu_model=name,
        cpu_cores=64,
        cpu_features=["avx2", "avx512f"] if memory > 64 else ["avx2"],
        memory_total_bytes=memory * GIB,
        memory_available_bytes=memory * GIB // 2,
        gpus=devices,
        cuda_available=bool(devices),
        packages={"torch": "2.13.0", **({"flash_attn": "2"} if memory > 64 else {})},
    )
    values = json_format.MessageToDict(hardware, preserving_proto_field_name=True)
    given = {"versions": SAME, "found": "content", "gpus": len(devices)} | facts
    return NodeFacts(id=name, address=name, hardware=values, **given)


def gpu(index: int, memory: int) -> Gpu:
    return Gpu(
        index=index, name=f"GPU of {memory} GiB", memory_total_bytes=memory * GIB, memory_free_bytes=memory * GIB
    )


def test_a_cluster_has_the_gpus_of_all_nodes_and_the_size_of_the_smallest() -> None:
    """With those of one node, jobs that fit would be refused; with the largest, jobs would run out of memory."""
    nodes = [
        node("big", 256, [gpu(0, 80), gpu(1, 80), gpu(2, 80)], gpus=2),
        node("small", 64, [gpu(0, 40)]),
        node("cpus", 128, []),
    ]

    hardware = cluster_hardware("trainer-1", nodes, threads=4)

    assert hardware.node_id == "trainer-1"
    assert [each.index for each in hardware.gpus] == [0, 1, 2]
    assert {each.name for each in hardware.gpus} == {"GPU of 40 GiB"}
    assert {each.memory_free_bytes for each in hardware.gpus} == {40 * GIB}
    assert (hardware.cpu_cores, hardware.memory_total_bytes, hardware.memory_available_bytes) == (4, 64 * GIB, 32 * GIB)
    assert list(hardware.cpu_features) == ["avx2"]
    assert set(hardware.packages) == {"torch"}
    assert hardware.cuda_available


def test_a_cluster_without_gpus_announces_none() -> None:
    hardware = cluster_hardware("trainer-1", [node("a", 64, []), node("b", 64, [])], threads=1)
    assert not hardware.cuda_available
    assert not hardware.gpus


@pytest.mark.parametrize(
    ("facts", "answer", "said"),
    [
        ({"found": "FileNotFoundError: No such file or directory"}, "", "set FTF_TRAINER_HOME to a folder on storage"),
        ({}, "", "does not share /shared/trainer with this trainer"),
        ({"versions": SAME | {"torch": "2.12.0"}}, "content", "has torch 2.12.0, and this trainer 2.13.0"),
        ({"versions": {}}, "content", "has finetuneflow-server none, and this trainer 0.1.0"),
        ({"missing_models": ["ours"]}, "content", "does not have the models ours of FTF_MODELS"),
        ({}, "content", ""),
    ],
)
def test_a_node_that_cannot_train_is_named(facts: dict[str, Any], answer: str, said: str) -> None:
    """Otherwise the first training there would fail, with an error of a library."""
    problem = problem_of(node("10.0.0.7", 64, [], **facts), "content", answer, "/shared/trainer", SAME)
    assert said in problem
    assert problem == "" or problem.startswith("node 10.0.0.7 of the Ray cluster")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"ray_address": "10.0.0.1:6379"}, "set FTF_TRAINER_ENGINE=ray as well"),
        ({"engine": "ray", "ray_address": "ray://10.0.0.1:10001"}, "Ray Client"),
        ({"engine": "ray", "child_confinement": "required"}, "FTF_TRAINER_CHILD_CONFINEMENT=available"),
    ],
)
def test_settings_that_would_have_no_effect_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainerSettings(**values)
