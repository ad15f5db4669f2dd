"""A child reports its phase and progress, and stops when the supervisor requests it."""

import pytest

from chassis.child.phases import Phases
from chassis.child.pipe import Cancelled, EventSink, Paused
from finetuneflow.v1.event_pb2 import Phase, Severity

NAMES = ("reading", "writing")


class RecordingSink(EventSink):
    """Records phases instead of writing them; `wanted` is the supervisor's request."""

    def __init__(self, wanted: str = "") -> None:
        super().__init__(None, None)
        self.phases: list[Phase] = []
        self.wanted = wanted

    def emit(self, payload: object, severity: Severity | None = None) -> None:
        assert isinstance(payload, Phase)
        self.phases.append(payload)

    def requested(self) -> str:
        return self.wanted


def test_phase_has_index_and_total() -> None:
    sink = RecordingSink()
    phases = Phases(sink, NAMES, pausable=False)
    phases.enter("reading", "a file")
    phases.advance("writing", None)
    assert [(each.name, each.index, each.count, each.detail) for each in sink.phases] == [
        ("reading", 1, 2, "a file"),
        ("writing", 2, 2, ""),
    ]
    assert not any(each.HasField("fraction") for each in sink.phases)


def test_progress_events_are_rate_limited_except_the_last() -> None:
    """A million rows must not fill the job's history, and a finished phase must not look unfinished."""
    sink = RecordingSink()
    phases = Phases(sink, NAMES, pausable=False)
    phases.enter("reading", "a file")
    for row in range(1001):
        phases.advance("reading", row / 1000)
    phases.advance("reading", 1.0)
    assert len(sink.phases) < 100
    assert [each.fraction for each in sink.phases].count(1.0) == 1
    assert sink.phases[-1].detail == "a file"


@pytest.mark.parametrize(("wanted", "pausable", "raised"), [("cancel", False, Cancelled), ("pause", True, Paused)])
def test_supervisors_request_takes_effect_at_next_row(wanted: str, pausable: bool, raised: type[Exception]) -> None:
    phases = Phases(RecordingSink(wanted), NAMES, pausable=pausable)
    with pytest.raises(raised):
        phases.advance("reading", 0.5)


def test_child_that_handles_pause_itself_continues() -> None:
    phases = Phases(RecordingSink("pause"), NAMES, pausable=False)
    phases.check()
