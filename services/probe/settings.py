"""Settings of the probe: `FTF_PROBE_<KEY>`, or `FTF_<KEY>` for all services."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from services.settings import ServiceSettings


class ProbeSettings(ServiceSettings):
    """The settings of every service, and those of the probe."""

    service: ClassVar[str] = "probe"

    listen: str = "127.0.0.1:7461"
    kept_dataset_bytes: int = 8 << 30
    """Approximate disk space, in bytes, for datasets that are kept for the next query."""
    max_dataset_bytes: int = Field(default=64 << 30, gt=0)
    """Maximum size of a hub dataset, in bytes. FTF_MAX_DATASET_BYTES also limits uploads."""
    prices: Path | None = None
    """A price table (TOML) that replaces the built-in one, engine/estimate/prices.toml."""
