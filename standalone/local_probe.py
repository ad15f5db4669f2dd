"""Runs the probe's queries on this machine, for `ftf` without a server."""

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message

from finetuneflow.errors import from_status
from finetuneflow.v1 import dataset_service_pb2, probe_service_pb2, validation_pb2
from standalone.guard import guarded
from standalone.home import default_home

# `ftf --help` imports this file; the modules that a query needs are imported when one runs.

M = TypeVar("M", bound=Message)


class ChildProbe:
    """Implements `finetuneflow.cli.local_probe.LocalProbe`.

    Each query runs in a process of its own, `python -m services.probe.queries`: this distribution starts services as
    programs and never imports them, and the memory that a query takes is free when it ends.
    """

    def recommend(self, request: probe_service_pb2.RecommendMethodRequest) -> probe_service_pb2.RecommendMethodResponse:
        return _run("RecommendMethod", request, {}, probe_service_pb2.RecommendMethodResponse())

    def estimate(
        self, request: probe_service_pb2.EstimateResourcesRequest
    ) -> probe_service_pb2.EstimateResourcesResponse:
        return _run("EstimateResources", request, {}, probe_service_pb2.EstimateResourcesResponse())

    def count_tokens(
        self, request: probe_service_pb2.EstimateResourcesRequest, files: Mapping[str, Path]
    ) -> validation_pb2.ValidationReport:
        return _run("CountTokens", request, files, validation_pb2.ValidationReport())

    def preflight(
        self, request: probe_service_pb2.PreflightFineTuningJobRequest, files: Mapping[str, Path]
    ) -> probe_service_pb2.PreflightFineTuningJobResponse:
        return _run("PreflightFineTuningJob", request, files, probe_service_pb2.PreflightFineTuningJobResponse())

    def validate(
        self, request: dataset_service_pb2.ValidateDatasetRequest, files: Mapping[str, Path]
    ) -> dataset_service_pb2.ValidateDatasetResponse:
        return _run("ValidateDataset", request, files, dataset_service_pb2.ValidateDatasetResponse())

    def preview(
        self, request: dataset_service_pb2.PreviewDatasetRequest, files: Mapping[str, Path]
    ) -> dataset_service_pb2.PreviewDatasetResponse:
        return _run("PreviewDataset", request, files, dataset_service_pb2.PreviewDatasetResponse())


def _run(method: str, request: Message, files: Mapping[str, Path], response: M) -> M:
    """Returns `response`, filled by the child. Raises the exception that the same error of a server becomes."""
    from chassis.child.query import Query, read_reply
    from chassis.errors import ServiceError
    from engine.data.work_limits import WorkLimits

    # The child creates it on first use, with a mode that lets everybody read it.
    default_home().mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix="ftf-query-") as name:
        folder = Path(name)
        query = Query.of(folder, method, request, {dataset: path.absolute() for dataset, path in files.items()})
        # A query may take minutes, and must not outlive the `ftf` that waits for it.
        command = guarded([sys.executable, "-m", "services.probe.queries", str(query.write(folder))])
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        try:
            return read_reply(query.out_dir, response, done.returncode, done.stderr.splitlines(), WorkLimits().deaths())
        except ServiceError as error:
            raise from_status(error.status()) from None
