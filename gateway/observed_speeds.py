"""Measured speeds of past trainings, on which estimates of time are based. Read from the jobs."""

from sqlmodel import col, select

from engine.estimate.estimate_proto import observed_speed
from finetuneflow.v1.estimate_pb2 import ObservedSpeed
from finetuneflow.v1.event_pb2 import ConfigResolved
from finetuneflow.v1.stage_result_pb2 import PreflightResult, TrainingResult
from gateway.sql.database import Database
from gateway.sql.tables import Work

_LATEST = 200


class ObservedSpeeds:
    """Speeds of the latest trainings of all tenants: they share the hardware; speeds reveal no data."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def latest(self) -> list[ObservedSpeed]:
        """Returns one speed for each successful training, newest first; at most 200."""
        query = (
            select(Work.config, Work.preflight, Work.training)
            .where(col(Work.training).is_not(None), col(Work.preflight).is_not(None), col(Work.config).is_not(None))
            .order_by(col(Work.id).desc())
            .limit(_LATEST)
        )
        async with self._database.read() as session:
            rows = (await session.exec(query)).all()
        found = (
            observed_speed(
                ConfigResolved.FromString(config or b"").resolved_spec,
                PreflightResult.FromString(preflight or b""),
                TrainingResult.FromString(training or b""),
            )
            for config, preflight, training in rows
        )
        return [speed for speed in found if speed is not None]
