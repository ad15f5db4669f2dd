"""Files that jobs made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path

import grpc

from finetuneflow.errors import IntegrityError, OutOfRange, ServerUnreachable
from finetuneflow.files import PartialFile, safe_relative_path
from finetuneflow.paging import pages
from finetuneflow.resources.artifact import Artifact
from finetuneflow.transport import Transport
from finetuneflow.v1 import artifact_service_pb2 as pb
from finetuneflow.v1 import artifact_service_pb2_grpc as pb_grpc

# Called with (bytes here, bytes in all) of the file on its way.
Progress = Callable[[int, int], None]


class Artifacts:
    """`client.artifacts`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = pb_grpc.ArtifactServiceStub(transport.channel)

    def list(self, job_id: str, *, kind: str = "", limit: int | None = None) -> Iterator[Artifact]:
        """Of one job, oldest first; only of one `kind` when given. Raises NotFound."""
        request = pb.ListArtifactsRequest(job_id=job_id, kind=kind)
        return map(Artifact.from_proto, pages(self._transport, self._stub.ListArtifacts, request, "artifacts", limit))

    def download(
        self, artifact: Artifact | str, to: str | PathLike[str] = ".", *, progress: Progress | None = None
    ) -> Path:
        """Downloads one file and returns its path: `to` itself, or a file below `to` when that is a folder.

        The path holds the whole file with the SHA-256 the server named, or it is as it was before. A download that
        was cut goes on where it stopped, in this call and in a later one. Raises NotFound, FailedPrecondition for a
        folder, IntegrityError.
        """
        whole = artifact if isinstance(artifact, Artifact) else self._header(artifact)
        target = Path(to).expanduser()
        if target.is_dir():
            target = target / safe_relative_path(whole.name).name
        target.parent.mkdir(parents=True, exist_ok=True)
        part = PartialFile(target, whole.sha256)
        if part.already_complete(whole.size_bytes):
            return target
        had_leftover = part.size > 0
        self._fetch(whole, part, progress)
        if not part.verified() and had_leftover:
            # What an earlier call left behind may be damaged; the server's own bytes get one chance.
            part.discard()
            self._fetch(whole, part, progress)
        if not part.verified():
            part.discard()
            raise IntegrityError(f"{whole.name} ({whole.id}) arrived with another SHA-256 than the server named.")
        return part.publish()

    def _header(self, artifact_id: str) -> Artifact:
        request = pb.DownloadArtifactRequest(artifact_id=artifact_id)
        stream = self._transport.stream(self._stub.DownloadArtifact, request)
        try:
            return Artifact.from_proto(next(stream).artifact)
        except grpc.RpcError as rpc_error:
            raise self._transport.error(rpc_error) from rpc_error
        finally:
            stream.cancel()

    def _fetch(self, whole: Artifact, part: PartialFile, progress: Progress | None) -> None:
        if part.size > whole.size_bytes:
            part.discard()
        patience = self._transport.patience()
        while not part.path.exists() or part.size < whole.size_bytes:
            before = part.size
            failure: IntegrityError | ServerUnreachable
            try:
                self._append(whole, part, progress)
                if part.size >= whole.size_bytes:
                    return
                failure = IntegrityError(f"{whole.name} ended after {part.size} of {whole.size_bytes} bytes.")
            except grpc.RpcError as rpc_error:
                error = self._transport.error(rpc_error)
                if isinstance(error, OutOfRange):
                    part.discard()
                if not isinstance(error, ServerUnreachable):
                    raise error from rpc_error
                failure = error
            if part.size > before:
                patience.reset()
            delay = patience.next_delay()
            if delay is None:
                raise failure
            time.sleep(delay)

    def _append(self, whole: Artifact, part: PartialFile, progress: Progress | None) -> None:
        done = part.size
        request = pb.DownloadArtifactRequest(artifact_id=whole.id, offset=done)
        stream = self._transport.stream(self._stub.DownloadArtifact, request)
        try:
            with part.path.open("ab") as file:
                for response in stream:
                    file.write(response.chunk)
                    done += len(response.chunk)
                    if progress is not None and response.chunk:
                        progress(done, whole.size_bytes)
        finally:
            stream.cancel()
