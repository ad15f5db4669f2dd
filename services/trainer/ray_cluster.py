"""The Ray cluster on which a trainer with FTF_TRAINER_ENGINE=ray runs its trainings. Imports no ray."""

import importlib.util
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from chassis.child.child_process import ChildCommand
from finetuneflow.v1.hardware_pb2 import Hardware
from services.attempt_inputs import child_environment
from services.trainer.cluster.messages import DriverInput
from services.trainer.cluster.nodes import Question, Survey, cluster_hardware
from services.trainer.settings import TrainerSettings
from services.trainer.worker.child_input import TrainingInput

_log = logging.getLogger(__name__)

INSTALL: Final = "pip install 'finetuneflow-server[ray]'"
_SURVEY_SECONDS: Final = 180
_REPEAT_SECONDS: Final = 300.0
"""Interval at which the nodes are looked at again. It takes seconds of a core."""


class RayCluster:
    """A cluster, looked at by a process of its own."""

    def __init__(self, settings: TrainerSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._survey = Survey()
        self._hardware = Hardware()
        self._surveyed = -_REPEAT_SECONDS

    def connect(self) -> str:
        """Looks at the cluster. Returns why no training can run there, and what to change; empty if one can."""
        survey = self._look()
        if not survey.problem:
            self._survey = survey
            self._hardware = cluster_hardware(self._settings.node_id, survey.nodes, self._settings.rank_threads)
            self._surveyed = time.monotonic()
        return survey.problem

    def describe(self) -> None:
        """Logs where trainings run, and what protects users' data there."""
        where = ", ".join(f"{node.address} ({node.gpus} GPUs)" for node in self._survey.nodes)
        _log.info("trainings run on the Ray cluster at %s: %s", self._survey.address, where)
        _log.warning(
            "the driver of a training is not confined; its processes are, on the nodes of the cluster, but reach the "
            "ephemeral ports of every machine there: see docs/security.md"
        )
        for node in self._survey.nodes:
            for lack in node.unconfined:
                _log.warning("node %s: %s", node.address, lack)

    def hardware(self) -> Hardware:
        """Returns the hardware for which trainings are planned; nothing but the id while the cluster is not usable.

        Looks at the nodes again if that is long ago. Blocks.
        """
        with self._lock:
            if time.monotonic() - self._surveyed >= _REPEAT_SECONDS and (problem := self.connect()):
                _log.error("no training can run on the Ray cluster: %s", problem)
                return Hardware(node_id=self._settings.node_id)
            return self._hardware

    def command(self, local: ChildCommand, child_input: TrainingInput) -> ChildCommand:
        """Returns how to start the driver of a training, in place of the child that `local` starts."""
        settings, config = self._settings, child_input.config
        training_input = Path(local.argv[-1])
        given = DriverInput(
            out_dir=child_input.out_dir,
            address=self._survey.address,
            training_input=training_input,
            reads=list(local.reads),
            world_size=config.world_size,
            on_gpus=bool(config.resources.gpus),
            threads=settings.rank_threads,
            environment={**child_environment(settings), "OMP_NUM_THREADS": str(settings.rank_threads)},
            file_bytes=settings.child_file_bytes,
            memory_bytes=settings.child_memory_bytes,
        )
        file = training_input.with_name("driver.json")
        file.write_text(given.model_dump_json(indent=1), "utf-8")
        argv = [sys.executable, "-m", "services.trainer.cluster.driver", str(file)]
        return ChildCommand(argv, child_input.out_dir, env=_ray_environment(), driver=True, provide=local.provide)

    def _look(self) -> Survey:
        if importlib.util.find_spec("ray") is None:
            return Survey(problem=f"ray is not installed: {INSTALL}")
        settings = self._settings
        where = f"the Ray cluster at {settings.ray_address}"
        models = {name: path.absolute() for name, path in settings.models.items()}
        question = Question(address=settings.ray_address, home=settings.home, models=models)
        argv = [sys.executable, "-m", "services.trainer.cluster.survey", question.model_dump_json()]
        try:
            found = subprocess.run(argv, capture_output=True, text=True, timeout=_SURVEY_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return Survey(problem=f"{where} did not answer within {_SURVEY_SECONDS} s")
        try:
            return Survey.model_validate_json(found.stdout.strip().rpartition("\n")[2])
        except ValidationError:
            lines = found.stderr.strip().splitlines() or [f"the survey ended with status {found.returncode}"]
            return Survey(problem=f"{where} cannot be used: {lines[-1]}")


def _ray_environment() -> dict[str, str]:
    """Returns the settings of Ray itself, such as its token, which its nodes do not pass on to a training."""
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
