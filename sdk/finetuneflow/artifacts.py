"""Files that jobs made."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from os import PathLike
from pathlib import Path

from finetuneflow.blocking import Blocking, blocking, iterating
from finetuneflow.downloading import Downloads, Progress
from finetuneflow.paging import paged
from finetuneflow.resources.artifact import Artifact
from finetuneflow.transport import CallPolicy, PlainCalls
from finetuneflow.v1 import artifact_service_pb2 as pb
from finetuneflow.v1 import artifact_service_pb2_grpc as pb_grpc


class AsyncArtifacts:
    """`client.artifacts` of an AsyncClient."""

    def __init__(self, transport: CallPolicy) -> None:
        self._transport = transport
        self._stub = pb_grpc.ArtifactServiceStub(transport.channel)

    def list(self, job_id: str, *, kind: str = "", limit: int | None = None) -> AsyncGenerator[Artifact, None]:
        """Of one job, oldest first; only of one `kind` when given. Raises NotFound."""
        request = pb.ListArtifactsRequest(job_id=job_id, kind=kind)
        return paged(self._transport, self._stub.ListArtifacts, request, "artifacts", limit, Artifact.from_proto)

    async def download(
        self, artifact: Artifact | str, to: str | PathLike[str] = ".", *, progress: Progress | None = None
    ) -> Path:
        """Downloads one file and returns its path: `to` itself, or a file below `to` when that is a folder.

        The path holds the whole file with the SHA-256 the server named, or it is as it was before. A download that
        was cut goes on where it stopped, in this call and in a later one. Raises NotFound, FailedPrecondition for a
        folder, IntegrityError.
        """

        def work(calls: PlainCalls) -> Path:
            return Downloads(calls).download(artifact, to, progress=progress)

        return await self._transport.transfer(work)


class Artifacts(Blocking):
    """`client.artifacts`."""

    list = iterating(AsyncArtifacts.list)
    download = blocking(AsyncArtifacts.download)
