"""Files that jobs produced."""

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
        """Lists the artifacts of one job, oldest first. Pages are fetched as needed.

        Args:
            job_id: Id of the job.
            kind: Lists only artifacts of this kind: `shards`, `validation_report`, `export_package`,
                `export_file`, `tensorboard` or `wandb`. Default: all kinds.
            limit: Maximum number of artifacts. Default: no limit.

        Yields:
            The artifacts.

        Raises:
            NotFound: The job does not exist.
        """
        request = pb.ListArtifactsRequest(job_id=job_id, kind=kind)
        return paged(self._transport, self._stub.ListArtifacts, request, "artifacts", limit, Artifact.from_proto)

    async def download(
        self, artifact: Artifact | str, to: str | PathLike[str] = ".", *, progress: Progress | None = None
    ) -> Path:
        """Downloads one file and verifies its SHA-256.

        The target file is replaced only when the whole file has arrived with the right SHA-256. An interrupted
        download resumes where it stopped, in this call or in a later one.

        Args:
            artifact: The artifact, or its id.
            to: Path of the target file, or of a folder to put the file into. Default: the current folder.
            progress: Called with the bytes received so far and the size of the file, in bytes.

        Returns:
            Path of the downloaded file.

        Raises:
            NotFound: The artifact does not exist.
            FailedPrecondition: The artifact is a folder.
            IntegrityError: The bytes do not have the size or SHA-256 that the server announced.
            OSError: The file cannot be written.
        """

        def work(calls: PlainCalls) -> Path:
            return Downloads(calls).download(artifact, to, progress=progress)

        return await self._transport.transfer(work)


class Artifacts(Blocking):
    """`client.artifacts`."""

    list = iterating(AsyncArtifacts.list)
    download = blocking(AsyncArtifacts.download)
