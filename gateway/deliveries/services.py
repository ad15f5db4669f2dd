"""Makes the sink of an integration."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from sqlmodel import select

from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1.fine_tuning_job_spec_pb2 import IntegrationSpec
from gateway.deliveries.delivery import MakeSink
from gateway.deliveries.http_client import HttpClient
from gateway.deliveries.mlflow import Mlflow
from gateway.deliveries.sinks import DeliveryFailed, FollowedJob, Sink
from gateway.deliveries.tensorboard import Tensorboard
from gateway.deliveries.wandb import Wandb
from gateway.deliveries.wandb_file import WandbFile
from gateway.deliveries.webhook import Webhook
from gateway.secret_store import SecretStore
from gateway.sql.database import Database
from gateway.sql.tables import Delivery, SecretRow


def sink_maker(
    database: Database, http: HttpClient, secrets: SecretStore, store: ArtifactStore, tensorboard_folder: Path
) -> MakeSink:
    """Returns the function that makes the sink of a delivery; it raises DeliveryFailed."""

    async def secret(tenant: str, name: str) -> SecretStr:
        found = (await secrets.use(tenant, [name])).get(name)
        if found is not None:
            return found
        async with database.read() as session:
            kept = select(SecretRow.name).where(SecretRow.tenant == tenant, SecretRow.name == name)
            if (await session.exec(kept)).one_or_none() is None:
                raise DeliveryFailed(
                    f"the secret {name} was deleted; set it again and retry the integration", final=True
                )
        raise DeliveryFailed(f"the secret {name} cannot be decrypted; set it again")

    async def make(row: Delivery, job: FollowedJob) -> Sink:
        spec = IntegrationSpec.FromString(row.spec)
        match spec.WhichOneof("service"):
            case "webhook":
                return Webhook(spec.webhook, job, await secret(row.tenant, spec.webhook.secret), http)
            case "tensorboard":
                return Tensorboard(job, tensorboard_folder, store)
            case "mlflow":
                name = spec.mlflow.secret
                token = await secret(row.tenant, name) if name else None
                return Mlflow(spec.mlflow, job, token, http, database, store)
            case "wandb" if spec.wandb.offline:
                return WandbFile(spec.wandb, job, database, store)
            case "wandb":
                return Wandb(spec.wandb, job, await secret(row.tenant, spec.wandb.secret), http, database)
        raise DeliveryFailed(
            "this version does not know the service; the operator has an older one running", final=True
        )

    return make
