"""Settings of the commands that need no server: `FTF_<KEY>`, as the services read them."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from chassis.settings import ProcessSettings


class StandaloneSettings(ProcessSettings):
    service: ClassVar[str] = "standalone"

    models: dict[str, Path] = Field(default_factory=dict)
    """The operator's base models, as JSON: alias → folder with safetensors files."""
    hub_cache_bytes: int = Field(default=0, ge=0)
    """Maximum size of all downloaded models of the hub in `home`, as for the services. 0: four fifths of the disk."""
