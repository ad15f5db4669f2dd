"""A watcher sees where a child's work is, and the child stops where it was asked to."""

import pytest

from chassis.child.phases import Phases
from chassis.child.pipe import Cancelled, EventSink, Paused
from finetuneflow.v1.event_pb2 import Phase, Severity

NAMES = ("reading", "writing")


class Sink(EventSink):
    """Keeps phases instead of writing them; `wanted` is what the supervisor requested."""

    def __init__(self, wanted: str = "") -> None:
        super().__init__(None, None)
        self.phases: list[Phase] = []
        self.wanted = wanted

    def emit(self, payload: object, severity: Severity | None = None) -> None:
        assert isinstance(payload, Phase)
        self.phases.append(payload)

    def requested(self) -> str:
        return self.wanted


def test_a_phase_says_where_it_stands_among_all() -> None:
    sink = Sink()
    phases = Phases(sink, NAMES, pausable=False)
    phases.enter("reading", "a file")
    phases.advance("writing", None)
    assert [(each.name, each.index, each.count, each.detail) for each in sink.phases] == [
        ("reading", 1, 2, "a file"),
        ("writing", 2, 2, ""),
    ]
    assert not any(each.HasField("fraction") for each in sink.phases)


def test_progress_of_every_row_is_not_an_event_of_every_row_but_the_end_is() -> None:
    """A million rows must not fill the job's history, and a finished phase must not look unfinished."""
    sink = Sink()
    phases = Phases(sink, NAMES, pausable=False)
    phases.enter("reading", "a file")
    for row in range(1001):
        phases.advance("reading", row / 1000)
    phases.advance("reading", 1.0)
    assert len(sink.phases) < 100
    assert [each.fraction for each in sink.phases].count(1.0) == 1
    assert sink.phases[-1].detail == "a file"


@pytest.mark.parametrize(("wanted", "pausable", "raised"), [("cancel", False, Cancelled), ("pause", True, Paused)])
def test_what_the_supervisor_wants_is_obeyed_at_the_next_row(
    wanted: str, pausable: bool, raised: type[Exception]
) -> None:
    phases = Phases(Sink(wanted), NAMES, pausable=pausable)
    with pytest.raises(raised):
        phases.advance("reading", 0.5)


def test_a_child_that_decides_itself_what_a_pause_means_goes_on() -> None:
    phases = Phases(Sink("pause"), NAMES, pausable=False)
    phases.check()
