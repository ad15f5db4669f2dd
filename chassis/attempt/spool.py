"""The spool: events of one claim on disk, until a gateway has accepted them.

Files in one folder, named by claim: `<claim>.json` (the record of the claim and its child), `<claim>.lock` (held by the
process that owns it) and segments `<claim>.<first ordinal>.events` of Event messages, each preceded by its length and
its CRC-32. A segment is deleted once all its events are accepted. Events are not fsynced: a machine that loses power
loses the lease as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Self

from pydantic import BaseModel, ValidationError

from chassis.events import ENDINGS, varint
from chassis.failpoints import failpoint
from finetuneflow.v1 import event_pb2

_log = logging.getLogger(__name__)

_SEGMENT_BYTES: Final = 1024 * 1024
_MAX_FRAME_BYTES: Final = 1024 * 1024
"""Far above the limit of an event: a longer frame is damaged."""
_CRC_BYTES: Final = 4


class ClaimRecord(BaseModel):
    """The data about a claim that a restarted supervisor needs."""

    job_id: str
    stage: int
    attempt: int
    claim_id: str
    workdir: Path
    child_pid: int = 0
    child_create_time: float = 0.0
    """Identifies the process together with the pid: pids are reused."""


@dataclass
class _Segment:
    path: Path
    first: int
    count: int = 0
    size: int = 0

    @property
    def end(self) -> int:
        return self.first + self.count


class _Position:
    """Position of an event in its segment. Reports read forward, so it is nearly always where the last read ended."""

    def __init__(self, segment: _Segment, ordinal: int = -1, offset: int = 0) -> None:
        self.segment = segment
        self.ordinal = segment.first if ordinal < 0 else ordinal
        self.offset = offset


class SpoolBusy(Exception):
    """Another process owns the spool."""


class Spool:
    """Holds the events with ordinals `first` to `end` - 1. For one task at a time; methods wait for the disk only.

    Memory use does not grow with the number of events.
    """

    def __init__(self, folder: Path, record: ClaimRecord) -> None:
        """Takes the lock and reads existing events. Raises SpoolBusy; OSError if the record cannot be written."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.record = record
        self._lock = _locked(self._name("lock"))
        self._out = -1
        try:
            self._segments = self._load()
            self._position = _Position(self._segments[0])
            self.sealed = self._ends_with_ending()
            """True once it holds an event that ends the attempt; nothing is appended after that."""
            self.save_record()
        except BaseException:
            self.close()
            raise

    @classmethod
    def leftovers(cls, folder: Path) -> list[Self]:
        """Opens every spool in the folder that no living process owns.

        A spool with an unreadable record is deleted: it cannot be reported, and the lease ends the claim.
        """
        found = []
        for claim in sorted({file.name.split(".")[0] for file in folder.glob("*.*")}):
            with contextlib.suppress(SpoolBusy):
                try:
                    record = ClaimRecord.model_validate_json((folder / f"{claim}.json").read_bytes())
                except (FileNotFoundError, ValidationError) as error:
                    lock = _locked(folder / f"{claim}.lock")
                    _log.warning("dropped the damaged spool of claim %s: %s", claim, error)
                    for part in folder.glob(f"{claim}.*"):
                        part.unlink(missing_ok=True)
                    os.close(lock)
                else:
                    found.append(cls(folder, record))
        return found

    @property
    def end(self) -> int:
        """Ordinal of the next event."""
        return self._segments[-1].end

    @property
    def first(self) -> int:
        """Ordinal of the oldest event held."""
        return self._segments[0].first

    def append(self, event: event_pb2.Event) -> None:
        """Sets the event's ordinal and stores it.

        Raises OSError if it cannot be written: then it is not stored, and the next event gets its ordinal.
        """
        if self.sealed:
            raise ValueError("the attempt has ended")
        event.ordinal = self.end
        segment = self._segments[-1]
        if segment.size >= _SEGMENT_BYTES:
            segment = self._begin_segment(self.end)
        if self._out < 0:
            self._out = os.open(segment.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        frame = _framed(event.SerializeToString())
        try:
            failpoint("spool.append")
            left = memoryview(frame)
            while left:
                left = left[os.write(self._out, left) :]
        except OSError:
            # Half a frame would hide every event after it from a restarted process.
            os.ftruncate(self._out, segment.size)
            raise
        failpoint("spool.appended")
        segment.count += 1
        segment.size += len(frame)
        self.sealed = event.WhichOneof("payload") in ENDINGS

    def read(self, ordinal: int, max_bytes: int) -> list[bytes]:
        """Returns serialised events from `ordinal` on, at most `max_bytes`, but at least one if there is one."""
        events: list[bytes] = []
        size = 0
        for segment in self._segments:
            if ordinal >= segment.end:
                continue
            with segment.path.open("rb") as source:
                self._seek(segment, max(ordinal, segment.first), source)
                while self._position.ordinal < segment.end:
                    data = _read_frame(source)
                    if data is None:
                        raise OSError(f"{segment.path} has changed under its owner")
                    # Tag and length of a `repeated bytes` entry.
                    size += len(data) + 4
                    if events and size > max_bytes:
                        return events
                    events.append(data)
                    self._position = _Position(segment, self._position.ordinal + 1, source.tell())
        return events

    def forget(self, next_ordinal: int) -> None:
        """Drops the events below `next_ordinal`, which are accepted."""
        if next_ordinal > self.end:
            # The machine lost events that a gateway has; their ordinals must not be used again.
            ending = self.read(self.end - 1, 1) if self.sealed else []
            self._begin_segment(next_ordinal)
            self.sealed = False
            for data in ending:
                self.append(event_pb2.Event.FromString(data))
        while len(self._segments) > 1 and self._segments[1].first <= next_ordinal:
            self._segments.pop(0).path.unlink(missing_ok=True)

    def save_record(self) -> None:
        """Writes the record atomically."""
        partial = self._name("json.new")
        with partial.open("w") as out:
            out.write(self.record.model_dump_json())
            out.flush()
            os.fsync(out.fileno())
        failpoint("record.synced")
        partial.replace(self._name("json"))
        failpoint("record.renamed")

    def delete(self) -> None:
        """Deletes all files of the claim."""
        for segment in self._segments:
            segment.path.unlink(missing_ok=True)
        for ending in ("json.new", "json", "lock"):
            self._name(ending).unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Closes the files and releases the lock; another process may open the spool."""
        for fd in (self._out, self._lock):
            if fd >= 0:
                os.close(fd)
        self._out = self._lock = -1

    def _name(self, ending: str) -> Path:
        return self._folder / f"{self.record.claim_id}.{ending}"

    def _begin_segment(self, first: int) -> _Segment:
        if self._out >= 0:
            os.close(self._out)
            self._out = -1
        self._segments.append(_Segment(self._name(f"{first:012}.events"), first))
        return self._segments[-1]

    def _seek(self, segment: _Segment, ordinal: int, source: BinaryIO) -> None:
        if self._position.segment is not segment or self._position.ordinal > ordinal:
            self._position = _Position(segment)
        source.seek(self._position.offset)
        while self._position.ordinal < ordinal:
            _read_frame(source)
            self._position = _Position(segment, self._position.ordinal + 1, source.tell())

    def _load(self) -> list[_Segment]:
        segments: list[_Segment] = []
        whole = True
        for path in sorted(self._folder.glob(f"{self.record.claim_id}.*.events")):
            segment = _Segment(path, int(path.name.split(".")[1]))
            if not whole or (segments and segment.first != segments[-1].end):
                # Events after a gap are never accepted.
                _log.warning("dropped %s: the segment before it is damaged", path)
                path.unlink()
                continue
            with path.open("r+b") as source:
                while _read_frame(source) is not None:
                    segment.count += 1
                    segment.size = source.tell()
                if damaged := path.stat().st_size - segment.size:
                    # Partly written by a killed supervisor, or torn or zeroed by a power cut.
                    _log.warning("dropped %d damaged bytes of %s", damaged, path)
                    source.truncate(segment.size)
                    whole = False
            segments.append(segment)
        return segments or [_Segment(self._name(f"{0:012}.events"), 0)]

    def _ends_with_ending(self) -> bool:
        # The ending may be the last event of the segment before an empty one.
        last = self.read(self.end - 1, 1) if self.end > self.first else []
        return bool(last) and event_pb2.Event.FromString(last[0]).WhichOneof("payload") in ENDINGS


def _locked(path: Path) -> int:
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise SpoolBusy(path.stem) from error
    return lock


def _framed(data: bytes) -> bytes:
    return varint(len(data)) + zlib.crc32(data).to_bytes(_CRC_BYTES, "big") + data


def _read_frame(source: BinaryIO) -> bytes | None:
    """Reads the next event. Returns None at the end or if the event is damaged."""
    length = shift = 0
    while True:
        byte = source.read(1)
        if not byte or shift > 28:
            return None
        length |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            break
        shift += 7
    # No event is empty, but a disk that lost power may contain zeros.
    if not 0 < length <= _MAX_FRAME_BYTES:
        return None
    checksum, data = source.read(_CRC_BYTES), source.read(length)
    return data if len(data) == length and zlib.crc32(data).to_bytes(_CRC_BYTES, "big") == checksum else None
