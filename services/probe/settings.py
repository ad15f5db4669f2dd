"""What can be set about this process: `FTF_PROBE_<KEY>`, else `FTF_<KEY>`."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from services.settings import ServiceSettings


class ProbeSettings(ServiceSettings):
    """Those of every service, with the probe's own port."""

    service: ClassVar[str] = "probe"

    listen: str = "127.0.0.1:7461"
    kept_dataset_bytes: int = 8 << 30
    """Datasets that were looked at are kept for the next look, up to about so many bytes of disk."""
    max_dataset_bytes: int = Field(default=64 << 30, gt=0)
    """Largest file that is read from a hub. Without the service's name, FTF_MAX_DATASET_BYTES, that of uploads, too."""
    prices: Path | None = None
    """A price table (TOML) in the place of the one that comes with the program, engine/estimate/prices.toml."""
