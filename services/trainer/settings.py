"""Settings of a trainer: `FTF_TRAINER_<KEY>`, else `FTF_<KEY>`."""

from typing import ClassVar

from pydantic import Field

from services.settings import ServiceSettings


class TrainerSettings(ServiceSettings):
    """Settings of every service, with the trainer's own port."""

    service: ClassVar[str] = "trainer"

    listen: str = "127.0.0.1:7462"
    max_dataset_bytes: int = Field(default=64 << 30, gt=0)
    """Maximum size of a hub dataset of a streamed corpus, in bytes. FTF_MAX_DATASET_BYTES also limits uploads."""
    extensions: tuple[str, ...] = ()
    """Extensions that take part in every training, as JSON: names of entry points of installed packages, in their
    order; see `services.trainer.worker.extensions`."""
