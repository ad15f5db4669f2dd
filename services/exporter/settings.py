"""Settings of an exporter process: `FTF_EXPORTER_<KEY>`, or else `FTF_<KEY>`."""

from typing import ClassVar

from services.settings import ServiceSettings


class ExporterSettings(ServiceSettings):
    """The settings of every service, with the exporter's own port."""

    service: ClassVar[str] = "exporter"

    listen: str = "127.0.0.1:7464"
