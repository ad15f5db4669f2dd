"""Defines the interface through which commands run queries on this machine, without a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from finetuneflow.v1 import dataset_service_pb2, probe_service_pb2, validation_pb2


class LocalProbe(Protocol):
    """Runs queries on this machine. The server distribution implements it; see `server_commands`.

    `files` are the local files of the datasets in the request, by their names in it. A method raises the exception that
    a client would raise for the same error of a server.
    """

    def recommend(
        self, request: probe_service_pb2.RecommendMethodRequest
    ) -> probe_service_pb2.RecommendMethodResponse: ...

    def estimate(
        self, request: probe_service_pb2.EstimateResourcesRequest
    ) -> probe_service_pb2.EstimateResourcesResponse: ...

    def count_tokens(
        self, request: probe_service_pb2.EstimateResourcesRequest, files: Mapping[str, Path]
    ) -> validation_pb2.ValidationReport:
        """Returns the statistics of the training data and the held-out rows in the request's spec."""
        ...

    def preflight(
        self, request: probe_service_pb2.PreflightFineTuningJobRequest, files: Mapping[str, Path]
    ) -> probe_service_pb2.PreflightFineTuningJobResponse: ...

    def validate(
        self, request: dataset_service_pb2.ValidateDatasetRequest, files: Mapping[str, Path]
    ) -> dataset_service_pb2.ValidateDatasetResponse: ...

    def preview(
        self, request: dataset_service_pb2.PreviewDatasetRequest, files: Mapping[str, Path]
    ) -> dataset_service_pb2.PreviewDatasetResponse: ...
