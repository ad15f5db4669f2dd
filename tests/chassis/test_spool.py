import resource
import tracemalloc
from pathlib import Path

import pytest

from chassis.attempt.spool import ClaimRecord, Spool, SpoolBusy
from finetuneflow.v1 import event_pb2


def claim_record(folder: Path) -> ClaimRecord:
    return ClaimRecord(job_id="j", stage=2, attempt=1, claim_id="c" * 32, workdir=folder / "work")


def log(step: int, size: int = 0) -> event_pb2.Event:
    return event_pb2.Event(log=event_pb2.Log(step=step), source="x" * size)


def steps(spool: Spool, ordinal: int, max_bytes: int = 1 << 30) -> list[int]:
    return [event_pb2.Event.FromString(data).log.step for data in spool.read(ordinal, max_bytes)]


def test_restarted_process_finds_all_events_and_reuses_no_ordinal(tmp_path: Path) -> None:
    spool = Spool(tmp_path, claim_record(tmp_path))
    for step in range(5):
        spool.append(log(step))
    spool.close()
    (again,) = Spool.leftovers(tmp_path)
    assert steps(again, 0) == [0, 1, 2, 3, 4]
    assert steps(again, 3) == [3, 4]
    again.append(log(5))
    assert event_pb2.Event.FromString(again.read(5, 1)[0]).ordinal == 5
    again.delete()
    assert list(tmp_path.iterdir()) == []


def test_incomplete_event_of_killed_process_is_dropped(tmp_path: Path) -> None:
    """One torn write must not make the whole claim unreadable."""
    spool = Spool(tmp_path, claim_record(tmp_path))
    spool.append(log(0))
    spool.close()
    (file,) = tmp_path.glob("*.events")
    with file.open("ab") as out:
        out.write(b"\x30half")
    (again,) = Spool.leftovers(tmp_path)
    again.append(log(1))
    assert steps(again, 0) == [0, 1]


@pytest.mark.parametrize("damage", [b"", b"\0" * 200, b'{"job_id": "j"}'])
def test_damaged_record_does_not_prevent_start(tmp_path: Path, damage: bytes) -> None:
    """After a power loss the worker would fail at every start."""
    whole = Spool(tmp_path, claim_record(tmp_path))
    whole.close()
    (tmp_path / "damaged.json").write_bytes(damage)
    (tmp_path / "damaged.000000000000.events").write_bytes(b"\x30half")
    (again,) = Spool.leftovers(tmp_path)
    assert again.record == whole.record
    assert list(tmp_path.glob("damaged*")) == []


def test_accepted_events_are_deleted_from_disk(tmp_path: Path) -> None:
    """The spool of a long training must not fill the disk with accepted events."""
    spool = Spool(tmp_path, claim_record(tmp_path))
    for step in range(200):
        spool.append(log(step, 60_000))
    assert len(list(tmp_path.glob("*.events"))) > 5
    spool.forget(150)
    assert len(list(tmp_path.glob("*.events"))) < 5
    assert spool.first <= 150
    assert steps(spool, 150) == list(range(150, 200))
    assert steps(spool, 195, 130_000) == [195, 196]


def test_spool_can_be_opened_by_one_process_only(tmp_path: Path) -> None:
    """Two services in one home must not kill each other's children."""
    spool = Spool(tmp_path, claim_record(tmp_path))
    assert Spool.leftovers(tmp_path) == []
    with pytest.raises(SpoolBusy):
        Spool(tmp_path, claim_record(tmp_path))
    spool.close()
    assert len(Spool.leftovers(tmp_path)) == 1


def test_no_event_is_accepted_after_ending_even_after_restart(tmp_path: Path) -> None:
    spool = Spool(tmp_path, claim_record(tmp_path))
    spool.append(log(0))
    spool.append(event_pb2.Event(stage_released=event_pb2.StageReleased(reason="PAUSED")))
    spool.close()
    (again,) = Spool.leftovers(tmp_path)
    assert again.sealed
    with pytest.raises(ValueError, match="ended"):
        again.append(log(1))


def test_ordinals_lost_in_power_loss_are_not_reused(tmp_path: Path) -> None:
    """After a power loss a gateway may have more events than the disk; reused ordinals would be dropped as
    duplicates."""
    spool = Spool(tmp_path, claim_record(tmp_path))
    spool.append(log(0))
    spool.forget(7)
    spool.append(log(7))
    assert (spool.first, spool.end) == (7, 8)
    assert steps(spool, 7) == [7]


def test_ending_is_renumbered_if_gateway_has_its_ordinal(tmp_path: Path) -> None:
    """Otherwise the claim would wait for its lease to expire, although its worker knows how it ended."""
    spool = Spool(tmp_path, claim_record(tmp_path))
    spool.append(event_pb2.Event(stage_failed=event_pb2.StageFailed(reason="KILLED")))
    spool.forget(7)
    (data,) = spool.read(7, 1)
    ending = event_pb2.Event.FromString(data)
    assert (ending.ordinal, ending.stage_failed.reason) == (7, "KILLED")
    assert spool.sealed


@pytest.mark.parametrize(
    "damage", ["bit", "zeros", "torn", "zero_tail"], ids=["a flipped bit", "zeros", "torn", "zeros at the end"]
)
def test_spool_is_read_up_to_first_damaged_event(tmp_path: Path, damage: str) -> None:
    """The damaged event is neither reported nor blocks others; the events before it are kept."""
    spool = Spool(tmp_path, claim_record(tmp_path))
    for step in range(3):
        spool.append(log(step, 100))
    spool.close()
    (file,) = tmp_path.glob("*.events")
    data = bytearray(file.read_bytes())
    third = len(data) // 3
    match damage:
        case "bit":
            data[third + third // 2] ^= 1
        case "zeros":
            data[third:] = bytes(2 * third)
        case "torn":
            del data[third + 7 :]
        case "zero_tail":
            del data[third:]
            data += bytes(4096)
    file.write_bytes(data)
    (again,) = Spool.leftovers(tmp_path)
    assert (steps(again, 0), again.end) == ([0], 1)
    again.append(log(1))
    again.close()
    (again,) = Spool.leftovers(tmp_path)
    assert steps(again, 0) == [0, 1]


def test_events_after_missing_ordinal_are_dropped(tmp_path: Path) -> None:
    """No gateway can accept them: they would be reported for ever."""
    spool = Spool(tmp_path, claim_record(tmp_path))
    for step in range(60):
        spool.append(log(step, 60_000))
    spool.close()
    first, *others = sorted(tmp_path.glob("*.events"))
    assert len(others) > 1
    first.write_bytes(first.read_bytes()[:100_000])
    (again,) = Spool.leftovers(tmp_path)
    assert steps(again, 0) == [0]
    assert again.end == 1


def test_spool_files_without_claim_are_deleted(tmp_path: Path) -> None:
    """Each would stay on the disk for ever."""
    (tmp_path / f"{'d' * 32}.000000000000.events").write_bytes(b"half")
    (tmp_path / f"{'d' * 32}.json.new").write_bytes(b"{")
    assert Spool.leftovers(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_full_disk_loses_no_event_and_reuses_no_ordinal(tmp_path: Path) -> None:
    """An incomplete event on a full disk would hide all later ones."""
    spool = Spool(tmp_path, claim_record(tmp_path))
    spool.append(log(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            spool.append(log(1, 5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps(spool, 0) == [0]
    spool.append(log(1, 5000))
    spool.close()
    (again,) = Spool.leftovers(tmp_path)
    events = [event_pb2.Event.FromString(data) for data in again.read(0, 1 << 30)]
    assert [(event.ordinal, event.log.step) for event in events] == [(0, 0), (1, 1)]


def test_memory_does_not_grow_with_spooled_events(tmp_path: Path) -> None:
    """All gateways may be down for a night."""
    spool = Spool(tmp_path, claim_record(tmp_path))
    spool.append(log(0, 300))
    tracemalloc.start()
    try:
        for step in range(1, 20_000):
            spool.append(log(step, 300))
        for ordinal in range(0, 20_000, 500):
            assert steps(spool, ordinal, 600) == [ordinal]
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 100_000
    assert [steps(spool, ordinal, 1) for ordinal in (19_999, 3, 12_345)] == [[19_999], [3], [12_345]]
