"""Settings of the probe: `FTF_PROBE_<KEY>`, or `FTF_<KEY>` for all services."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from engine.data.work_limits import WorkLimits
from services.settings import ServiceSettings


class ProbeSettings(ServiceSettings):
    """The settings of every service, and those of the probe."""

    service: ClassVar[str] = "probe"

    listen: str = "127.0.0.1:7461"
    kept_dataset_bytes: int = 8 << 30
    """Approximate disk space, in bytes, for datasets that are kept for the next query."""
    max_dataset_bytes: int = Field(default=64 << 30, gt=0)
    """Maximum size of a hub dataset, in bytes. FTF_MAX_DATASET_BYTES also limits uploads."""
    corpus_cache_bytes: int = Field(default=0, ge=0)
    """Maximum size of the files of a streamed corpus that a preflight has on the disk at once, in bytes. 0: half of
    what is free when it begins, divided by `slots`."""
    max_template_seconds: float = Field(default=60, gt=0)
    """Maximum processor time of a query's or preflight's row templates and chat templates, beside a millisecond per
    row. Each process that tokenises has it for itself."""
    max_query_seconds: float = Field(default=1800, gt=0)
    """Maximum processor time of a query about data, of all its processes together."""
    max_preflight_seconds: float = Field(default=8 * 3600, gt=0)
    """Maximum processor time of a job's preflight, of all its processes together."""
    max_tokens: int = Field(default=20_000_000_000, gt=0)
    """Maximum number of tokens of a job's rows, with the repetitions that `weight` asks for."""
    max_shard_bytes: int = Field(default=200 << 30, gt=0)
    """Maximum size of a job's token shards, which have 8 bytes per token."""
    max_waiting_queries: int = Field(default=16, gt=0)
    """Maximum number of a tenant's queries about data that wait for a process; further ones are refused."""
    prices: Path | None = None
    """A price table (TOML) that replaces the built-in one, engine/estimate/prices.toml."""

    @property
    def query_limits(self) -> WorkLimits:
        return self._limits(self.max_query_seconds, "FTF_PROBE_MAX_QUERY_SECONDS")

    @property
    def preflight_limits(self) -> WorkLimits:
        return self._limits(self.max_preflight_seconds, "FTF_PROBE_MAX_PREFLIGHT_SECONDS")

    def _limits(self, processor_seconds: float, setting: str) -> WorkLimits:
        return WorkLimits(
            template_seconds=self.max_template_seconds,
            processor_seconds=processor_seconds,
            processor_setting=setting,
            tokens=self.max_tokens,
            shard_bytes=self.max_shard_bytes,
        )
