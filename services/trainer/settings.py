"""Settings of a trainer: `FTF_TRAINER_<KEY>`, else `FTF_<KEY>`."""

from typing import ClassVar

from services.settings import ServiceSettings


class TrainerSettings(ServiceSettings):
    """Settings of every service, with the trainer's own port."""

    service: ClassVar[str] = "trainer"

    listen: str = "127.0.0.1:7462"
