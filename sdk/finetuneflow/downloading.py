"""Downloads of one file, over as many streams as it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from os import PathLike
from pathlib import Path

import grpc

from finetuneflow.chunks import chunk_of
from finetuneflow.errors import DeadlineExceeded, FineTuneFlowError, IntegrityError, Unavailable
from finetuneflow.files import PartialFile, safe_relative_path, write_all
from finetuneflow.hashing import Hashing
from finetuneflow.patience import Patience
from finetuneflow.resources.artifact import Artifact
from finetuneflow.transport import PlainCalls
from finetuneflow.v1 import artifact_service_pb2 as pb
from finetuneflow.v1 import artifact_service_pb2_grpc as pb_grpc

_SECONDS_WITHOUT_PROGRESS = 60.0

# Called with the bytes received so far and the size of the file.
Progress = Callable[[int, int], None]


class Downloads:
    """Downloads files with the given calls."""

    def __init__(self, calls: PlainCalls) -> None:
        self._calls = calls
        self._stub = pb_grpc.ArtifactServiceStub(calls.channel)
        # The messages stay serialised: parsing one copies its chunk twice more.
        self._receive = calls.channel.unary_stream(
            "/finetuneflow.v1.ArtifactService/DownloadArtifact",
            request_serializer=pb.DownloadArtifactRequest.SerializeToString,
            response_deserializer=bytes,
        )

    def download(
        self, artifact: Artifact | str, to: str | PathLike[str] = ".", *, progress: Progress | None = None
    ) -> Path:
        """Blocking form of AsyncArtifacts.download."""
        whole = artifact if isinstance(artifact, Artifact) else self._header(artifact)
        target = Path(to).expanduser()
        if target.is_dir():
            target = target / safe_relative_path(whole.name).name
        target.parent.mkdir(parents=True, exist_ok=True)
        part = PartialFile(target, whole.sha256)
        if part.already_complete(whole.size_bytes):
            return target
        leftover = part.size > 0
        sha256 = self._fetch(whole, part, progress)
        if sha256 != whole.sha256 and leftover:
            # The part that an earlier call left behind may be damaged; download the whole file once more.
            part.discard()
            sha256 = self._fetch(whole, part, progress)
        if sha256 != whole.sha256:
            part.discard()
            raise IntegrityError(
                f"{whole.name} ({whole.id}) arrived with another SHA-256 than the server announced.",
                advice="Download it again; if it fails again, the file in the artifact store is damaged.",
            )
        return part.publish()

    def _header(self, artifact_id: str) -> Artifact:
        request = pb.DownloadArtifactRequest(artifact_id=artifact_id)
        stream = self._calls.stream(self._stub.DownloadArtifact, request)
        try:
            return Artifact.from_proto(next(stream).artifact)
        except grpc.RpcError as rpc_error:
            raise self._calls.error(rpc_error) from rpc_error
        finally:
            stream.cancel()

    def _fetch(self, whole: Artifact, part: PartialFile, progress: Progress | None) -> str:
        """Downloads the missing bytes over as many streams as it takes; returns the SHA-256 of the whole file."""
        if part.size > whole.size_bytes:
            part.discard()
        part.path.touch()
        with Hashing(part.path, part.size) as hashing:
            patience = self._calls.patience()
            while part.size < whole.size_bytes:
                before = part.size
                failure: FineTuneFlowError
                try:
                    self._append(whole, part, hashing, progress)
                    failure = IntegrityError(
                        f"The download of {whole.name} ended after {part.size:,} of {whole.size_bytes:,} bytes.",
                        advice="Download it again; it resumes where it stopped.",
                    )
                except grpc.RpcError as rpc_error:
                    failure = self._calls.error(rpc_error)
                    if not isinstance(failure, Unavailable | DeadlineExceeded):
                        raise failure from rpc_error
                if part.size >= whole.size_bytes:
                    break
                if part.size > before:
                    patience = Patience(_SECONDS_WITHOUT_PROGRESS)
                delay = patience.next_delay()
                if delay is None:
                    raise failure
                time.sleep(delay)
            return hashing.hexdigest()

    def _append(self, whole: Artifact, part: PartialFile, hashing: Hashing, progress: Progress | None) -> None:
        done = part.size
        request = pb.DownloadArtifactRequest(artifact_id=whole.id, offset=done)
        stream = self._calls.stream(self._receive, request)
        try:
            with part.path.open("ab", buffering=0) as file:
                for wire in stream:
                    chunk = chunk_of(wire)
                    if chunk is None:
                        self._check_same(whole, pb.DownloadArtifactResponse.FromString(wire))
                        continue
                    if done + len(chunk) > whole.size_bytes:
                        raise IntegrityError(f"{whole.name} is longer than the announced {whole.size_bytes:,} bytes.")
                    write_all(file, chunk)
                    done += len(chunk)
                    hashing.grown_to(done)
                    if progress is not None:
                        progress(done, whole.size_bytes)
        finally:
            stream.cancel()

    def _check_same(self, whole: Artifact, response: pb.DownloadArtifactResponse) -> None:
        if response.artifact.sha256 != whole.sha256:
            raise IntegrityError(f"{whole.name} ({whole.id}) has changed since it was listed.")
