"""Settings of a gateway: `FTF_GATEWAY_<KEY>`."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field
from sqlalchemy.engine import URL, make_url

from chassis.settings import ProcessSettings


class GatewaySettings(ProcessSettings):
    """Settings of a gateway, beside those of every process."""

    service: ClassVar[str] = "gateway"

    listen: str = "127.0.0.1:7460"
    database_url: str = ""
    """`sqlite:///path` or `postgresql://…`. Default: `gateway.sqlite` under home."""
    models: dict[str, Path] = Field(default_factory=dict)
    """The operator's base models: alias → folder with safetensors."""
    lease_seconds: float = Field(default=15.0, gt=0)
    """A claim whose worker reports nothing for longer expires."""
    max_dataset_bytes: int = Field(default=64 << 30, gt=0)
    """Largest file that UploadDataset accepts, in bytes."""

    @property
    def database(self) -> URL:
        # Made of its parts: in a URL that is text, `%`, `#` and `?` of a folder's name would mean something else.
        if not self.database_url:
            return URL.create("sqlite", database=str(self.home / "gateway.sqlite"))
        return make_url(self.database_url)
