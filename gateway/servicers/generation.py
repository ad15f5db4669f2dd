"""EvaluatorService as the gateway serves it: finds the model, then passes the request through to an evaluator."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from chassis.errors import InvalidArgument, NotFound, Violation
from engine.catalogue import Catalogue
from engine.random_reference import RandomReference
from finetuneflow.v1 import evaluator_service_pb2 as api
from finetuneflow.v1.evaluator_service_pb2_grpc import EvaluatorServiceServicer, EvaluatorServiceStub
from finetuneflow.v1.event_pb2 import ConfigResolved
from finetuneflow.v1.stage_result_pb2 import BaseModelIdentity, PreflightResult
from gateway.access.callers import tenant_of
from gateway.passthrough import Passthrough
from gateway.sql.database import Database
from gateway.sql.tables import SavedCheckpoint, Work
from gateway.tuned_models import TUNED, existing_job, find_checkpoint, resolved_settings, split_name, trained_job

Context = grpc.aio.ServicerContext[Any, Any]


class Generation(EvaluatorServiceServicer):
    """Served by the gateway."""

    def __init__(self, database: Database, catalogue: Catalogue, passthrough: Passthrough) -> None:
        self._database, self._catalogue, self._passthrough = database, catalogue, passthrough

    async def Generate(self, request: api.GenerateRequest, context: Context) -> AsyncIterator[api.GenerateResponse]:
        served = await self._served_model(request.model, tenant_of(context))
        request.served_model.CopyFrom(served)
        responses = self._passthrough.stream(
            "evaluator",
            lambda channel: EvaluatorServiceStub(channel).Generate,
            request,
            context,
            warm_model=served.checkpoint_manifest_sha256 if served.full or served.exclusive else served.base_model.id,
        )
        async for response in responses:
            yield response

    async def _served_model(self, name: str, tenant: str) -> api.ServedModel:
        """Returns what a name refers to. Raises InvalidArgument, NotFound, FailedPrecondition."""
        if not name:
            raise InvalidArgument("INVALID_REQUEST", "model is required.", [Violation("model", "is required.")])
        if name.startswith(TUNED):
            return await self._tuned(name, tenant)
        entries = await asyncio.to_thread(self._catalogue.list)
        for entry in entries:
            if entry.id == name:
                identity = BaseModelIdentity(id=name, revision=entry.revision)
                return api.ServedModel(tenant=tenant, base_model=identity)
        named = RandomReference.parse(name)
        if named and named.sources and {*named.sources} <= {entry.id for entry in entries}:
            return api.ServedModel(tenant=tenant, base_model=BaseModelIdentity(id=str(named)))
        known = ", ".join(entry.id for entry in entries)
        message = (
            f"There is no model {name[:80]!r}. Name a base model of the catalogue ({known}), or a tuned model: "
            f"{TUNED}<job_id> or {TUNED}<job_id>@<step>."
        )
        raise NotFound("MODEL_NOT_FOUND", message, [Violation("model", message)])

    async def _tuned(self, name: str, tenant: str) -> api.ServedModel:
        parts = split_name(name)
        if parts is None:
            message = f"There is no model {name[:80]!r}: the step of a checkpoint is a number."
            raise NotFound("MODEL_NOT_FOUND", message, [Violation("model", message)])
        job_id, step = parts
        async with self._database.read() as session:
            # A checkpoint can be tried while its job still trains.
            find = trained_job if step is None else existing_job
            job = await find(session, job_id, tenant)
            checkpoint = await find_checkpoint(session, job, step, "model")
        return _served_checkpoint(job, checkpoint)


def _served_checkpoint(job: Work, checkpoint: SavedCheckpoint) -> api.ServedModel:
    config = resolved_settings(job)
    prepared = PreflightResult.FromString(job.preflight or b"")
    served = api.ServedModel(
        tenant=job.tenant,
        base_model=prepared.base_model,
        checkpoint_path=checkpoint.path,
        checkpoint_manifest_sha256=checkpoint.manifest_sha256,
        checkpoint_step=checkpoint.step,
        full=config.method == "full",
        chat_template=config.chat_template,
        system_prompt=config.system_prompt or "",
        shards_path=prepared.shards_path,
        shards_manifest_sha256=prepared.shards_manifest_sha256,
        exclusive=config.method != "full" and config.lora.needs_own_base,
    )
    if config.method == "qlora" and config.lora.init_lora_weights == "loftq":
        # The adapter contains what quantization has lost; on other weights it would be added a second time.
        served.quantization.CopyFrom(ConfigResolved.FromString(job.config or b"").resolved_spec.quantization)
    return served
