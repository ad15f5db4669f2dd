"""Events of one claim on disk, until a gateway has accepted them.

Files in one folder, named by claim: `<claim>.json` (what the claim is, and its child), `<claim>.lock` (held by the
process that owns it) and segments `<claim>.<first ordinal>.events` of length-delimited Event messages. Whole segments
are deleted once everything in them is accepted. Events are not fsynced: a machine that loses power loses the lease as
well.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, Self

from pydantic import BaseModel, ValidationError

from chassis.events import ENDINGS, varint
from chassis.failpoints import failpoint
from finetuneflow.v1 import event_pb2

_log = logging.getLogger(__name__)

_SEGMENT_BYTES: Final = 1024 * 1024


class ClaimRecord(BaseModel):
    """What a restarted supervisor has to know of a claim."""

    job_id: str
    tenant: str
    stage: int
    attempt: int
    claim_id: str
    workdir: Path
    child_pid: int = 0
    child_create_time: float = 0.0
    """With the pid it identifies a process: pids come again."""


@dataclass
class _Segment:
    path: Path
    first: int
    ends: list[int] = field(default_factory=list)
    """Where each event ends in the file."""


class SpoolBusy(Exception):
    """Another process owns it."""


class Spool:
    """Ordinals `first` to `end` - 1 wait here. For one task at a time; no method waits for anything but the disk."""

    def __init__(self, folder: Path, record: ClaimRecord) -> None:
        """Takes the lock and reads what is there. SpoolBusy."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.record = record
        self._lock = os.open(self._name("lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise SpoolBusy(record.claim_id) from error
        self._segments = self._load()
        self._out: BinaryIO | None = None
        self.sealed = self._ends_with_ending()
        """True once it holds an event that ends the attempt; nothing is appended after that."""
        self.save_record()

    @classmethod
    def leftovers(cls, folder: Path) -> list[Self]:
        """Opens every spool in the folder that no living process owns.

        One whose record cannot be read is deleted: nobody can report for it, and its lease ends the claim.
        """
        found = []
        for file in sorted(folder.glob("*.json")):
            with contextlib.suppress(SpoolBusy, FileNotFoundError):
                try:
                    record = ClaimRecord.model_validate_json(file.read_bytes())
                except ValidationError as error:
                    _log.warning("dropped the damaged spool of claim %s: %s", file.stem, error)
                    for part in folder.glob(f"{file.stem}.*"):
                        part.unlink(missing_ok=True)
                else:
                    found.append(cls(folder, record))
        return found

    @property
    def end(self) -> int:
        """The ordinal that the next event gets."""
        return self._segments[-1].first + len(self._segments[-1].ends)

    @property
    def first(self) -> int:
        """The oldest ordinal that is still here."""
        return self._segments[0].first

    def append(self, event: event_pb2.Event) -> None:
        """Gives the event its ordinal and keeps it."""
        if self.sealed:
            raise ValueError("the attempt has ended")
        event.ordinal = self.end
        segment = self._segments[-1]
        if segment.ends and segment.ends[-1] >= _SEGMENT_BYTES:
            segment = self._begin_segment(self.end)
        if self._out is None:
            self._out = segment.path.open("ab")
        data = event.SerializeToString()
        frame = varint(len(data)) + data
        self._out.write(frame)
        self._out.flush()
        failpoint("spool.appended")
        segment.ends.append((segment.ends[-1] if segment.ends else 0) + len(frame))
        self.sealed = event.WhichOneof("payload") in ENDINGS

    def read(self, ordinal: int, max_bytes: int) -> list[bytes]:
        """Serialised events from `ordinal` on, at least one if there is one, together at most `max_bytes`."""
        events: list[bytes] = []
        size = 0
        for segment in self._segments:
            skip = max(0, ordinal - segment.first)
            if skip >= len(segment.ends):
                continue
            with segment.path.open("rb") as source:
                source.seek(segment.ends[skip - 1] if skip else 0)
                for _ in segment.ends[skip:]:
                    data = _read_frame(source)
                    assert data is not None  # noqa: S101 - `ends` was taken from this file
                    # Tag and length of a `repeated bytes` entry.
                    size += len(data) + 4
                    if events and size > max_bytes:
                        return events
                    events.append(data)
        return events

    def forget(self, next_ordinal: int) -> None:
        """Everything below is accepted for good."""
        if next_ordinal > self.end:
            # The machine lost what a gateway has; ordinals must not be given twice.
            self._begin_segment(next_ordinal)
        while len(self._segments) > 1 and self._segments[1].first <= next_ordinal:
            self._segments.pop(0).path.unlink(missing_ok=True)

    def save_record(self) -> None:
        """Writes the record, whole or not at all."""
        partial = self._name("json.new")
        with partial.open("w") as out:
            out.write(self.record.model_dump_json())
            out.flush()
            os.fsync(out.fileno())
        failpoint("record.synced")
        partial.replace(self._name("json"))
        failpoint("record.renamed")

    def delete(self) -> None:
        """Nothing of the claim is left."""
        self.close()
        for segment in self._segments:
            segment.path.unlink(missing_ok=True)
        self._name("json").unlink(missing_ok=True)
        self._name("lock").unlink(missing_ok=True)

    def close(self) -> None:
        """Lets go of the files; another process may take them over."""
        if self._out:
            self._out.close()
            self._out = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _name(self, ending: str) -> Path:
        return self._folder / f"{self.record.claim_id}.{ending}"

    def _begin_segment(self, first: int) -> _Segment:
        if self._out:
            self._out.close()
            self._out = None
        self._segments.append(_Segment(self._name(f"{first:012}.events"), first))
        return self._segments[-1]

    def _load(self) -> list[_Segment]:
        segments = []
        for path in sorted(self._folder.glob(f"{self.record.claim_id}.*.events")):
            segment = _Segment(path, int(path.name.split(".")[1]))
            with path.open("r+b") as source:
                while _read_frame(source) is not None:
                    segment.ends.append(source.tell())
                # What a killed supervisor was writing; no gateway has seen it.
                source.truncate(segment.ends[-1] if segment.ends else 0)
            segments.append(segment)
        return segments or [_Segment(self._name(f"{0:012}.events"), 0)]

    def _ends_with_ending(self) -> bool:
        # The ending may be the last event of the segment before an empty one.
        last = self.read(self.end - 1, 1) if self.end > self.first else []
        return bool(last) and event_pb2.Event.FromString(last[0]).WhichOneof("payload") in ENDINGS


def _read_frame(source: BinaryIO) -> bytes | None:
    length = shift = 0
    while True:
        byte = source.read(1)
        if not byte:
            return None
        length |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            break
        shift += 7
    data = source.read(length)
    return data if len(data) == length else None
