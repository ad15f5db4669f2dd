"""Limits of a tenant, and its use of them, counted in SQL.

A transaction that adds something locks the tenant's row first, so that the next one counts what it has added. Decisions
about work lock that work's row and never wait for a tenant's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import func
from sqlmodel import col, or_, select
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import ResourceExhausted
from gateway.sql.tables import (
    ApiKeyRow,
    Attempt,
    SavedArtifact,
    SavedCheckpoint,
    SecretRow,
    TenantRow,
    UploadedDataset,
    Work,
    now,
)

_DAY: Final = 24 * 60 * 60 * 1_000_000


@dataclass(frozen=True)
class DefaultLimits:
    """Limits of a tenant that has none of its own."""

    max_live_jobs: int = 1000
    max_datasets: int = 10_000
    max_stored_bytes: int = 10 << 40
    max_gpu_seconds_per_day: int | None = None
    """None: unlimited."""
    max_secrets: int = 1000
    max_keys: int = 1000
    """API keys that have not ended."""


class Quotas:
    """Refuses what would exceed a tenant's limits. Every method raises ResourceExhausted."""

    def __init__(self, defaults: DefaultLimits) -> None:
        self._defaults = defaults

    async def check_new_work(self, session: AsyncSession, tenant: str) -> None:
        """Locks the tenant until the transaction ends. Call it after the insertion: the new row counts."""
        limits = await self._limits(session, tenant, lock=True)
        live = select(func.count()).where(Work.tenant == tenant, col(Work.end_time).is_(None))
        number = (await session.exec(live)).one()
        if number > limits.max_live_jobs:
            raise _refusal(
                "TOO_MANY_JOBS",
                "max_live_jobs of your tenant",
                limits.max_live_jobs,
                number - 1,
                "fine-tuning jobs, evaluations and exports that have not ended",
                "Wait until one has ended, or cancel one",
            )
        await self._check_bytes(session, tenant, limits, 1)
        await self._check_gpu_time(session, tenant, limits)

    async def check_new_dataset(
        self, session: AsyncSession, tenant: str, size_bytes: int, *, lock: bool = False
    ) -> None:
        """With `lock`, locks the tenant until the transaction ends. Call it before the insertion."""
        limits = await self._limits(session, tenant, lock=lock)
        number = (await session.exec(select(func.count()).where(UploadedDataset.tenant == tenant))).one()
        if number >= limits.max_datasets:
            advice = "Delete datasets that you no longer need"
            raise _refusal(
                "TOO_MANY_DATASETS", "max_datasets of your tenant", limits.max_datasets, number, "datasets", advice
            )
        await self._check_bytes(session, tenant, limits, size_bytes)

    async def check_new_secret(self, session: AsyncSession, tenant: str) -> None:
        """Locks the tenant until the transaction ends. Call it before the insertion."""
        most = (await self._limits(session, tenant, lock=True)).max_secrets
        number = (await session.exec(select(func.count()).where(SecretRow.tenant == tenant))).one()
        if number >= most:
            setting, advice = "FTF_GATEWAY_MAX_SECRETS_PER_TENANT", "Delete secrets that you no longer need"
            raise _refusal("TOO_MANY_SECRETS", setting, most, number, "secrets", advice)

    async def check_new_key(self, session: AsyncSession, tenant: str) -> None:
        """Locks the tenant until the transaction ends. Call it before the insertion."""
        most = (await self._limits(session, tenant, lock=True)).max_keys
        lasting = or_(col(ApiKeyRow.expire_time).is_(None), col(ApiKeyRow.expire_time) > now())
        live = select(func.count()).where(ApiKeyRow.tenant == tenant, col(ApiKeyRow.revoke_time).is_(None), lasting)
        number = (await session.exec(live)).one()
        if number >= most:
            setting, advice = "FTF_GATEWAY_MAX_KEYS_PER_TENANT", "Revoke keys that nobody uses"
            raise _refusal("TOO_MANY_KEYS", setting, most, number, "API keys", advice)

    async def _limits(self, session: AsyncSession, tenant: str, *, lock: bool) -> DefaultLimits:
        query = select(TenantRow).where(TenantRow.name == tenant)
        # The keys of a tenant refer to its row; their insertion need not wait.
        row = (await session.exec(query.with_for_update(key_share=True) if lock else query)).one_or_none()
        if row is None:
            return self._defaults
        defaults = self._defaults
        return replace(
            defaults,
            max_live_jobs=_own(row.max_live_jobs, defaults.max_live_jobs),
            max_datasets=_own(row.max_datasets, defaults.max_datasets),
            max_stored_bytes=_own(row.max_stored_bytes, defaults.max_stored_bytes),
            max_gpu_seconds_per_day=(
                defaults.max_gpu_seconds_per_day if row.max_gpu_seconds_per_day is None else row.max_gpu_seconds_per_day
            ),
        )

    async def _check_bytes(self, session: AsyncSession, tenant: str, limits: DefaultLimits, added: int) -> None:
        stored = 0
        for table in (UploadedDataset, SavedCheckpoint, SavedArtifact):
            query = select(func.coalesce(func.sum(table.size_bytes), 0)).where(table.tenant == tenant)
            if table is SavedCheckpoint:
                query = query.where(col(SavedCheckpoint.pruned).is_(False))
            stored += int((await session.exec(query)).one())
        if stored + added > limits.max_stored_bytes:
            raise _refusal(
                "STORAGE_LIMIT",
                "max_stored_bytes of your tenant",
                limits.max_stored_bytes,
                stored,
                "bytes of datasets, checkpoints and artifacts",
                "Delete datasets or jobs that you no longer need",
            )

    async def _check_gpu_time(self, session: AsyncSession, tenant: str, limits: DefaultLimits) -> None:
        limit = limits.max_gpu_seconds_per_day
        if limit is None:
            return
        end = now()
        query = select(Attempt.gpus, Attempt.claim_time, Attempt.end_time).where(
            Attempt.tenant == tenant,
            Attempt.gpus > 0,
            or_(col(Attempt.end_time).is_(None), col(Attempt.end_time) > end - _DAY),
        )
        used = sum(
            gpus * max((ended or end) - max(claimed or end, end - _DAY), 0)
            for gpus, claimed, ended in (await session.exec(query)).all()
        )
        seconds = used // 1_000_000
        if seconds >= limit:
            raise _refusal(
                "GPU_TIME_LIMIT",
                "max_gpu_seconds_per_day of your tenant",
                limit,
                seconds,
                "seconds of GPU time in the last 24 hours",
                "Try again later",
            )


DEFAULT_QUOTAS: Final = Quotas(DefaultLimits())


def _own(limit: int | None, default: int) -> int:
    return default if limit is None else limit


def _refusal(reason: str, field: str, limit: int, used: int, what: str, advice: str) -> ResourceExhausted:
    message = f"Your tenant has {used:,} {what}; its limit is {limit:,}. {advice}, or ask an operator to raise {field}."
    return ResourceExhausted(reason, message, metadata={"limit": str(limit), "used": str(used)})
