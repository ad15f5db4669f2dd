"""TensorBoard: an event file in a folder of the operator's, which becomes an artifact of the job.

The whole history is in SQL, and equal events give equal bytes: after a kill the file is written again from its start,
and a TensorBoard that reads it meanwhile goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event as FileEvent
from tensorboardX.proto.event_pb2 import SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1.event_pb2 import Event
from gateway.deliveries.sinks import DeliveryFailed, FollowedJob, TrackerRun, artifact_of
from gateway.sql.tables import SavedArtifact
from gateway.uncancellable import in_thread
from gateway.work.projection import points_of

_FORMAT = "brain.Event:2"


class Tensorboard:
    """An event file. `folder` is the operator's, for all jobs."""

    kinds = frozenset({"log", "eval", "restored"})
    batch = 50
    from_start = True
    idle_seconds: float | None = None
    credentials: Sequence[str] = ()

    def __init__(self, job: FollowedJob, folder: Path, store: ArtifactStore) -> None:
        self._job, self._store = job, store
        self._run = f"{job.tenant}/{job.job_id}/{job.integration_id}"
        self._file = folder / self._run / f"events.out.tfevents.{job.create_time // 1_000_000}.finetuneflow"
        self._writer: RecordWriter | None = None

    async def open(self) -> TrackerRun:
        await in_thread(self._begin)
        return TrackerRun(self._run)

    async def write(self, events: Sequence[Event]) -> int:
        await in_thread(self._add, [record for event in events for record in _records(event)])
        return 0

    async def finish(self, state: str) -> Sequence[SavedArtifact]:
        await self.close()
        path = f"jobs/{self._job.job_id}/integrations/{self._job.integration_id}/{self._file.name}"
        try:
            stored = await in_thread(self._store.put_file, self._file, f"{self._job.tenant}/{path}")
        except OSError as error:
            raise DeliveryFailed(f"the event file cannot be stored: {error.strerror}") from error
        return [artifact_of(self._job, self._file.name, "tensorboard", path, stored)]

    async def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            await in_thread(writer.close)

    def _begin(self) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._writer = RecordWriter(str(self._file))
        except OSError as error:
            raise _unwritable(error) from error
        self._add([FileEvent(wall_time=self._job.create_time / 1e6, file_version=_FORMAT)])

    def _add(self, records: Sequence[FileEvent]) -> None:
        if self._writer is None:
            raise RuntimeError("the file is not open")
        try:
            for record in records:
                self._writer.write(record.SerializeToString())
            self._writer.flush()
        except OSError as error:
            raise _unwritable(error) from error


def _unwritable(error: OSError) -> DeliveryFailed:
    return DeliveryFailed(f"the operator's folder for TensorBoard cannot be written: {error.strerror}")


def _records(event: Event) -> Iterator[FileEvent]:
    time = event.event_time.ToMicroseconds() / 1e6
    if event.HasField("restored"):
        # TensorBoard drops the points from this step on, which the attempt before had made.
        step = event.restored.first_step
        yield FileEvent(wall_time=time, step=step, session_log=SessionLog(status=SessionLog.START))
        return
    step = event.log.step if event.HasField("log") else event.eval.step
    values = [Summary.Value(tag=name, simple_value=value) for name, value in points_of(event)]
    yield FileEvent(wall_time=time, step=step, summary=Summary(value=values))
