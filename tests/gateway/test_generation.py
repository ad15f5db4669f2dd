"""Which model a request to generate refers to, over a real channel."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from engine.catalogue import Catalogue
from finetuneflow.v1 import evaluator_service_pb2
from finetuneflow.v1 import fine_tuning_service_pb2 as api
from finetuneflow.v1.evaluator_service_pb2 import GenerateRequest, GenerateResponse, ServedModel
from finetuneflow.v1.evaluator_service_pb2_grpc import EvaluatorServiceStub, add_EvaluatorServiceServicer_to_server
from gateway.passthrough import Passthrough
from gateway.servicers.generation import Generation
from gateway.sql.database import Database
from tests.gateway.serving import add_job, refusal, serving
from tests.gateway.test_training_start import Gateway, gateway

__all__ = ["gateway"]


class Recording(Passthrough):
    """Keeps the requests instead of forwarding them."""

    def __init__(self) -> None:
        self.requests: list[GenerateRequest] = []
        self.warm: list[str] = []

    async def stream(
        self, service: str, method: Any, request: Any, context: Any, warm_model: str = ""
    ) -> AsyncIterator[Any]:
        self.requests.append(request)
        self.warm.append(warm_model)
        yield GenerateResponse(finish_reason="stop")


@contextlib.asynccontextmanager
async def generation(database: Database, folder: Path) -> AsyncIterator[tuple[EvaluatorServiceStub, Recording]]:
    recording = Recording()
    catalogue = Catalogue(folder, {"tiny": folder})
    servicer = Generation(database, catalogue, recording)
    add = add_EvaluatorServiceServicer_to_server
    async with (
        serving(evaluator_service_pb2, "EvaluatorService", add, servicer) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield EvaluatorServiceStub(channel), recording


async def served(stub: EvaluatorServiceStub, recording: Recording, model: str) -> ServedModel:
    forged = ServedModel(tenant="victim", checkpoint_path="secrets")
    await stub.Generate(GenerateRequest(model=model, prompt="?", served_model=forged)).read()
    return recording.requests[-1].served_model


async def test_names_refer_to_checkpoints_of_the_caller(gateway: Gateway, tmp_path: Path) -> None:
    """The evaluator believes what the gateway fills in; a caller must not choose the path."""
    job = await gateway.trained(system_prompt="Be brief.", chat_template="{{ messages }}")
    async with generation(gateway.database, tmp_path) as (stub, recording):
        best = await served(stub, recording, f"ft:{job}")
        assert (best.tenant, best.checkpoint_step, best.checkpoint_manifest_sha256) == ("default", 20, f"{20:064}")
        assert best.checkpoint_path.endswith("checkpoints/step-20")
        assert (best.base_model.id, best.base_model.weights_sha256) == ("org/base", "f" * 64)
        assert (best.system_prompt, best.chat_template) == ("Be brief.", "{{ messages }}")
        assert not best.full and not best.exclusive and not best.HasField("quantization")
        assert (await served(stub, recording, f"ft:{job}@50")).checkpoint_step == 50
        base = await served(stub, recording, "tiny")
        assert base == ServedModel(tenant="default", base_model=base.base_model)
        assert recording.warm == ["org/base", "org/base", "tiny"]


async def test_full_and_quantized_models_are_told_apart(gateway: Gateway, tmp_path: Path) -> None:
    """An adapter on other weights, or all weights taken for an adapter, would answer with nonsense."""
    full = await gateway.trained("FULL")
    loftq = await gateway.trained(
        "QLORA", lora={"init_lora_weights": "loftq", "bias": "none"}, quantization={"bits": 4}
    )
    alone = [
        await gateway.trained(lora=lora)
        for lora in ({"bias": "all"}, {"modules_to_save": ["lm_head"]}, {"trainable_tokens": ["a"]})
    ]
    shared = await gateway.trained(lora={"use_dora": True})
    async with generation(gateway.database, tmp_path) as (stub, recording):
        assert (await served(stub, recording, f"ft:{full}")).full
        assert recording.warm[-1] == f"{20:064}"
        assert (await served(stub, recording, f"ft:{loftq}")).quantization.bits == 4
        for job in alone:
            assert (await served(stub, recording, f"ft:{job}")).exclusive
            assert recording.warm[-1] == f"{20:064}", "another copy of the base model is of no use"
        assert not (await served(stub, recording, f"ft:{shared}")).exclusive


async def test_inl_model_with_a_seed_is_asked(gateway: Gateway, tmp_path: Path) -> None:
    """The owner of a job compares its answers with those of its base model."""
    async with generation(gateway.database, tmp_path) as (stub, recording):
        model = await served(stub, recording, "inl-small,tokenizer=smollm2-135m,seed=7")
        assert model.base_model.id == "inl-small,seed=7"


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("inl-small,tokenizer=nobody", "There is no model"),
        ("nobody", "There is no model 'nobody'"),
        ("ft:ftjob_none", "no such fine-tuning job"),
        ("ft:ftjob_none@latest", "a number"),
        ("/etc/passwd", "There is no model"),
    ],
)
async def test_unknown_models_are_not_found(gateway: Gateway, tmp_path: Path, model: str, says: str) -> None:
    async with generation(gateway.database, tmp_path) as (stub, _):
        found = await refusal(stub.Generate(GenerateRequest(model=model, prompt="?")).read())
    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert says in found.message
    assert found.fields == ("model",)


async def test_models_that_cannot_be_asked_say_why(gateway: Gateway, tmp_path: Path) -> None:
    """A caller must know whether to wait, to name another step or to give up."""
    trained = await gateway.trained()
    running = (await gateway.created(base_model="org/base")).id
    foreign = await add_job(gateway.database, tenant="other")
    async with generation(gateway.database, tmp_path) as (stub, _):

        async def refused(model: str) -> tuple[grpc.StatusCode, str]:
            found = await refusal(stub.Generate(GenerateRequest(model=model, prompt="?")).read())
            return found.code, found.reason

        assert await refused(f"ft:{trained}@15") == (grpc.StatusCode.NOT_FOUND, "CHECKPOINT_NOT_FOUND")
        assert await refused(f"ft:{running}") == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_TRAINED")
        await gateway.stub.CancelFineTuningJob(api.CancelFineTuningJobRequest(job_id=running))
        over = await refusal(stub.Generate(GenerateRequest(model=f"ft:{running}", prompt="?")).read())
        assert over.reason == "NOT_TRAINED" and "no model; create it again" in over.message
        assert await refused(f"ft:{running}@10") == (grpc.StatusCode.NOT_FOUND, "CHECKPOINT_NOT_FOUND")
        assert await refused(f"ft:{foreign}") == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
        assert await refused("") == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
