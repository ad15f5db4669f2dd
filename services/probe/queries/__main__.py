"""Runs one query: `python -m services.probe.queries INPUT.json`. A warm spare imports its modules and then waits."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from google.protobuf.message import Message

from chassis.child import child_process
from chassis.child.pipe import Cancelled, EventSink, run_child
from chassis.child.query import replying
from chassis.child.warm_start import wait_for_input
from chassis.security.confinement import ChildLimits, Confinement, Files, confined
from engine.data.split import Progress
from engine.hub_cache import ModelUses
from finetuneflow.v1 import probe_service_pb2
from finetuneflow.v1.event_pb2 import StageCompleted
from services.attempt_inputs import catalogue, child_environment
from services.hub_access import operators_access
from services.probe.estimates import Estimates
from services.probe.queries.count_tokens import count_tokens
from services.probe.queries.dry_run import dry_run
from services.probe.queries.fetch import fetch
from services.probe.queries.inspect_dataset import preview_dataset, validate_dataset
from services.probe.queries.query import ProbeQuery
from services.probe.settings import ProbeSettings
from services.probe.warm_up import warm_up


def main(sink: EventSink, input_path: Path) -> StageCompleted:
    """Writes the reply to the query in `input_path`."""
    query = ProbeQuery.model_validate_json(input_path.read_bytes())

    def progress(_phase: str, _fraction: float | None) -> None:
        if sink.requested():
            raise Cancelled
        if query.fetched is not None:
            query.fetched.limits.check_processor_time()
        sink.tick()

    with replying(query.out_dir) as reply:
        if query.fetched is None:
            settings = ProbeSettings()
            uses = ModelUses()
            query = fetch(query, settings, catalogue(settings), operators_access(settings), uses)
            if query.fetched is not None:
                uses.outlive_exec()
                _restart_confined(query, input_path.parent, settings)
        if query.fetched is not None:
            query.fetched.limits.apply()
        reply(run(query, progress))
    return StageCompleted()


def _restart_confined(query: ProbeQuery, folder: Path, settings: ProbeSettings) -> NoReturn:
    """Becomes this program again, confined and without secrets: only the part without rows needs the network."""
    scratch = folder / "scratch"
    scratch.mkdir()
    reads = [folder, *query.files.values(), query.provided.model.path, *([settings.prices] if settings.prices else [])]
    files = Files.of(reads, writes=[query.out_dir, scratch])
    limits = ChildLimits(settings.child_file_bytes, settings.child_memory_bytes)
    argv = [sys.executable, "-m", "services.probe.queries", str(query.write(folder))]
    own = {**child_environment(settings), "HOME": str(scratch), "TMPDIR": str(scratch)}
    command, environment = confined(argv, Confinement(limits, files)), child_process.child_environment(own)
    os.execve(sys.executable, command, environment)  # noqa: S606 - no shell is wanted


def run(query: ProbeQuery, progress: Progress) -> Message:
    """Returns the response to the query. Raises JobError, and SystemFailure if a hub cannot be reached."""
    match query.method:
        case "RecommendMethod":
            return _estimates().recommend(query.parsed(probe_service_pb2.RecommendMethodRequest()))
        case "EstimateResources":
            return _estimates().estimate(query.parsed(probe_service_pb2.EstimateResourcesRequest()))
        case "CountTokens":
            return count_tokens(query, progress)
        case "PreflightFineTuningJob":
            return dry_run(query, progress)
        case "ValidateDataset":
            return validate_dataset(query, progress)
        case "PreviewDataset":
            return preview_dataset(query, progress)
    raise ValueError(f"unknown method: {query.method!r}")


def _estimates() -> Estimates:
    """Reads the settings of this process: a serving probe estimates in its own process, which reads no rows for it."""
    settings = ProbeSettings()
    return Estimates(catalogue(settings), settings.home, hub=operators_access(settings), prices=settings.prices)


if __name__ == "__main__":
    wait_for_input(warm_up)
    run_child(main)
