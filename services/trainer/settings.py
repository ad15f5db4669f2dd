"""Settings of a trainer: `FTF_TRAINER_<KEY>`, else `FTF_<KEY>`."""

import re
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from services.settings import ServiceSettings


class TrainerSettings(ServiceSettings):
    """Settings of every service, with the trainer's own port."""

    service: ClassVar[str] = "trainer"

    listen: str = "127.0.0.1:7462"
    max_dataset_bytes: int = Field(default=64 << 30, gt=0)
    """Maximum size of a hub dataset of a streamed corpus, in bytes. FTF_MAX_DATASET_BYTES also limits uploads."""
    corpus_cache_bytes: int = Field(default=0, ge=0)
    """Maximum size of the files of a streamed corpus that a training has on the disk at once, in bytes. 0: half of what
    is free when it begins, divided by `slots`."""
    engine: Literal["local", "ray"] = "local"
    """What runs the processes of trainings: "local": this machine; "ray": Ray Train, on the nodes of a Ray cluster that
    share `home`. With "ray", `threads` is the number of CPUs that each process reserves there and of its threads, 1 by
    default, and there is no warm spare."""
    ray_address: str = "auto"
    """host:port of the head of that cluster; "auto": the cluster of this machine's Ray node. A node has to run on this
    machine in either case; it needs no CPUs of its own."""
    extensions: tuple[str, ...] = ()
    """Extensions that take part in every training, as JSON: names of entry points of installed packages, in their
    order; see `services.trainer.worker.extensions`."""

    @model_validator(mode="after")
    def _engine_can_obey(self) -> Self:
        if self.engine == "local" and "ray_address" in self.model_fields_set:
            raise ValueError("ray_address has no effect on local trainings: set FTF_TRAINER_ENGINE=ray as well")
        if self.engine == "ray" and self.child_confinement == "required":
            raise ValueError(
                "processes of a training on a Ray cluster reach each other through the network of their nodes, which "
                "FTF_CHILD_CONFINEMENT=required forbids: set FTF_TRAINER_CHILD_CONFINEMENT=available"
            )
        if self.ray_address != "auto" and not re.fullmatch(r"[^/\s]+:\d+", self.ray_address):
            raise ValueError("ray_address is host:port of the head, or auto; Ray Client (ray://) is not supported")
        return self

    @property
    def rank_threads(self) -> int:
        """Number of CPUs and threads of each process on a Ray cluster."""
        return self.threads or 1
