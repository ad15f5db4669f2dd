"""Checks of a job that need running services or the values of secrets. Creation and dry runs make the same ones."""

from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from gateway.gguf_types import check_gguf_types
from gateway.harness_tasks import check_harness_tasks
from gateway.secret_store import SecretStore
from gateway.waiting import Nodes
from gateway.webhook_key import check_webhook_keys


async def check_offers_and_keys(
    tenant: str, merged: FineTuningJobSpec, nodes: Nodes | None, secrets: SecretStore | None
) -> None:
    """Checks the harness tasks and GGUF types that running services offer, and the keys of webhooks.

    `merged` is the spec with its recipe and defaults. Without `nodes` or `secrets` their part is not checked. Raises
    InvalidArgument, and Unavailable while the broker is unavailable.
    """
    if nodes is not None:
        await check_harness_tasks(merged.evaluation.harness_tasks, "spec.evaluation", nodes)
        await check_gguf_types(merged.export, "spec.export", nodes)
    if secrets is not None:
        named = {f"spec.integrations[{index}]": each for index, each in enumerate(merged.integrations)}
        await check_webhook_keys(secrets, tenant, named)
