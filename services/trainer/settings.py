"""Settings of a trainer: `FTF_TRAINER_<KEY>`, else `FTF_<KEY>`."""

from typing import ClassVar

from services.settings import ServiceSettings


class TrainerSettings(ServiceSettings):
    """Settings of every service, with the trainer's own port."""

    service: ClassVar[str] = "trainer"

    listen: str = "127.0.0.1:7462"
    extensions: tuple[str, ...] = ()
    """Extensions that take part in every training, as JSON: names of entry points of installed packages, in their
    order; see `services.trainer.worker.extensions`."""
