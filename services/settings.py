"""Settings of the four services, beside those of every process."""

import contextlib
import os
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator

from chassis.settings import WorkerSettings


class ServiceSettings(WorkerSettings):
    """Settings of a service whose stage works on base models. `FTF_<SERVICE>_<KEY>` wins over `FTF_<KEY>`."""

    models: dict[str, Path] = Field(default={})
    """The operator's base models, as JSON: alias → folder with config.json, tokenizer.json and safetensors."""
    hub_token: SecretStr = SecretStr("")
    """The operator's token of the model hub, for the repositories in hub_token_repositories. Jobs that name a token of
    their own use that one. It stays in this process; children have no network and no secrets."""
    hub_token_repositories: tuple[str, ...] = ()
    """Models and datasets of the hub that all callers may use with hub_token, as JSON: `org/name`, `org/*`, or `*` for
    everything that its account can read. Default: hub_token is used for nothing."""
    hub_cache_shared: bool = False
    """Models that were downloaded serve all callers. Otherwise the hub is asked, for each job with one that is not
    public, whether the job's token may read it."""
    max_model_bytes: int = Field(default=2 << 40, gt=0)
    """Maximum size of the files of a base model on the hub, in bytes; a larger one is not downloaded."""
    hub_cache_bytes: int = Field(default=0, ge=0)
    """Maximum size of all downloaded models of the hub in `home`, in bytes. The least recently used ones that no job
    and no query uses are deleted to make room for another. 0: four fifths of the disk."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Number of threads for a child's computation. 0: the cores this process may use, divided by its slots."""

    @model_validator(mode="after")
    def _pools_are_of_trainers(self) -> Self:
        if self.service != "trainer" and self.pool != "default":
            raise ValueError("only trainers have pools: set FTF_TRAINER_POOL instead of FTF_POOL")
        return self

    @property
    def child_threads(self) -> int:
        """Number of threads on this machine; at least 1."""
        return self.threads or max(1, _cores() // self.slots)


def _cores() -> int:
    """Returns the number of cores that this process is pinned to, within its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        # "max 100000" means no limit. More threads than the quota allows only delay each other.
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores
