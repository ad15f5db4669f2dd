"""Weights & Biases without a connection: a file that `wandb sync` uploads, as an artifact of the job.

Not by the library, which writes it with a process of its own that listens on a socket, and that needs rights which no
child here has. The format is a log of LevelDB (https://github.com/google/leveldb/blob/main/doc/log_format.md) after a
header of Weights & Biases. Its records are messages of wandb/proto/wandb_internal.proto. The library reads it in
`tests/gateway/test_wandb.py`.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

from sqlmodel import col, select

from chassis.events import varint
from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1.event_pb2 import Event
from finetuneflow.v1.fine_tuning_job_spec_pb2 import WandbSpec
from gateway.deliveries import wandb_run
from gateway.deliveries.sinks import DeliveryFailed, FollowedJob, TrackerRun, artifact_of
from gateway.sql.database import Database
from gateway.sql.tables import SavedArtifact, WorkEvent
from gateway.uncancellable import in_thread

_HEADER: Final = b":W&B" + (0xBEE1).to_bytes(2, "little") + b"\x00"
_BLOCK_BYTES: Final = 32 << 10
_CHUNK_HEADER_BYTES: Final = 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_PAGE_EVENTS: Final = 50

# Numbers of fields of Record, and of those of its messages.
_NUM, _INFO, _STREAM_ID = 1, 200, 1
_HISTORY, _SUMMARY, _CONFIG, _METRIC, _RUN, _EXIT, _VERSION = 2, 3, 5, 12, 17, 18, 21
_ITEM, _ITEM_KEY, _ITEM_VALUE = 1, 1, 16


class WandbFile:
    """Writes the file when the job has ended, from its events in SQL: equal events give equal bytes."""

    kinds = wandb_run.KINDS
    batch = _PAGE_EVENTS
    from_start = False
    idle_seconds: float | None = None
    credentials: Sequence[str] = ()

    def __init__(self, spec: WandbSpec, job: FollowedJob, database: Database, store: ArtifactStore) -> None:
        self._spec, self._job, self._database, self._store = spec, job, database, store

    async def open(self) -> TrackerRun:
        return TrackerRun(self._spec.run_name or self._job.display_name)

    async def write(self, events: Sequence[Event]) -> int:
        return 0

    async def finish(self, state: str) -> Sequence[SavedArtifact]:
        name = f"run-{self._job.integration_id}.wandb"
        path = f"jobs/{self._job.job_id}/integrations/{self._job.integration_id}/{name}"
        # `wandb sync` skips a file whose folder has another name, as one that was uploaded while it was written.
        folder_name = f"offline-run-{self._job.integration_id}"
        with tempfile.TemporaryDirectory(prefix="finetuneflow-wandb-") as folder:
            file = Path(folder) / name
            try:
                with file.open("wb") as out:
                    await self._fill(out, state)
                stored = await in_thread(self._store.put_file, file, f"{self._job.tenant}/{path}")
            except OSError as error:
                raise DeliveryFailed(f"the file for wandb sync cannot be stored: {error.strerror}") from error
        return [artifact_of(self._job, f"{folder_name}/{name}", "wandb", path, stored)]

    async def close(self) -> None:
        """Nothing is open."""

    async def _fill(self, out: BinaryIO, state: str) -> None:
        log = _Log(out, self._job.integration_id)
        await in_thread(log.begin, self._job, self._spec)
        summary: dict[str, Any] = {}
        number, metrics, runtime = 0, {wandb_run.STEP}, 0
        async for events in self._pages():
            records: list[tuple[int, bytes]] = []
            for event in events:
                runtime = int(wandb_run.runtime(self._job, event))
                if event.HasField("config_resolved"):
                    settings = wandb_run.settings(event.config_resolved.resolved_spec)
                    records.append((_CONFIG, _items(settings)))
                elif event.HasField("state_changed"):
                    summary["finetuneflow"] = wandb_run.state(event)
                else:
                    new = [name for name in wandb_run.points(event) if name not in metrics]
                    metrics.update(new)
                    records += [(_METRIC, _metric(name)) for name in new]
                    line = wandb_run.line(self._job, number, event)
                    summary |= line
                    records.append((_HISTORY, _items(line) + _message(2, _number(1, number))))
                    number += 1
            await in_thread(log.add, records)
        ended = _number(1, wandb_run.EXIT_CODES[state]) + _number(2, runtime)
        summary["_wandb"] = {"runtime": runtime}
        await in_thread(log.add, [(_SUMMARY, _items(summary)), (_EXIT, ended)])

    async def _pages(self) -> AsyncIterator[list[Event]]:
        last = 0
        while True:
            query = select(WorkEvent.event).where(
                WorkEvent.work_id == self._job.job_id,
                WorkEvent.sequence > last,
                col(WorkEvent.kind).in_(wandb_run.KINDS),
            )
            async with self._database.read() as session:
                rows = (await session.exec(query.order_by(col(WorkEvent.sequence)).limit(_PAGE_EVENTS))).all()
            events = [Event.FromString(row) for row in rows]
            if events:
                last = events[-1].sequence
                yield events
            if len(events) < _PAGE_EVENTS:
                return


class _Log:
    """Writes records in chunks that do not cross the borders of blocks."""

    def __init__(self, out: BinaryIO, stream_id: str) -> None:
        self._out, self._size, self._records = out, 0, 0
        self._info = _message(_INFO, _text(_STREAM_ID, stream_id))

    def begin(self, job: FollowedJob, spec: WandbSpec) -> None:
        self._put(_HEADER)
        run = [
            _text(1, job.integration_id),
            _text(2, spec.entity),
            _text(3, spec.project),
            _message(4, _items({**wandb_run.settings(job.spec), "finetuneflow": wandb_run.about(job)})),
            _text(8, spec.run_name or job.display_name),
            *(_text(10, tag) for tag in wandb_run.tags(job)),
            _message(17, _number(1, job.create_time // 1_000_000) + _number(2, job.create_time % 1_000_000 * 1000)),
        ]
        step = _text(1, wandb_run.STEP) + _message(6, _number(3, 1))
        self.add([(_VERSION, _message(1, _text(1, "finetuneflow"))), (_RUN, b"".join(run)), (_METRIC, step)])

    def add(self, records: Sequence[tuple[int, bytes]]) -> None:
        """`records`: number of the field in Record and content of the message."""
        for field, content in records:
            self._records += 1
            self._chunks(_number(_NUM, self._records) + _message(field, content) + self._info)

    def _chunks(self, record: bytes) -> None:
        begun = False
        while True:
            room = _BLOCK_BYTES - self._size % _BLOCK_BYTES
            if room < _CHUNK_HEADER_BYTES:
                self._put(bytes(room))
                continue
            part = record[: room - _CHUNK_HEADER_BYTES]
            record = record[len(part) :]
            kind = (_MIDDLE if begun else _FIRST) if record else (_LAST if begun else _FULL)
            checksum = zlib.crc32(part, zlib.crc32(bytes([kind])))
            self._put(checksum.to_bytes(4, "little") + len(part).to_bytes(2, "little") + bytes([kind]) + part)
            begun = True
            if not record:
                return

    def _put(self, data: bytes) -> None:
        self._out.write(data)
        self._size += len(data)


def _items(values: Mapping[str, Any]) -> bytes:
    """Returns the items of a history, a summary or a config."""
    return b"".join(
        _message(_ITEM, _text(_ITEM_KEY, key) + _text(_ITEM_VALUE, wandb_run.encoded(value)))
        for key, value in values.items()
    )


def _metric(name: str) -> bytes:
    """Returns the definition of a metric whose axis is the training step."""
    return _text(1, name) + _text(4, wandb_run.STEP) + _message(6, _number(3, 1))


def _message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode()) if text else b""


def _number(field: int, number: int) -> bytes:
    return varint(field << 3) + varint(number)
