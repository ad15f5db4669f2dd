"""What can be set about this process: `FTF_PROBE_<KEY>`, else `FTF_<KEY>`."""

from pathlib import Path
from typing import ClassVar

from services.settings import ServiceSettings


class ProbeSettings(ServiceSettings):
    """Those of every service, with the probe's own port."""

    service: ClassVar[str] = "probe"

    listen: str = "127.0.0.1:7461"
    kept_dataset_bytes: int = 8 << 30
    """Datasets that were looked at are kept for the next look, up to about so many bytes of disk."""
    prices: Path | None = None
    """A price table (TOML) in the place of the one that comes with the program, engine/estimate/prices.toml."""
