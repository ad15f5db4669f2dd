import threading
import time
from collections.abc import Callable

import grpc
import pytest

from finetuneflow import Client, JobCancelled, JobFailed, NotFound, ServerUnreachable, Unavailable
from finetuneflow.v1 import fine_tuning_job_pb2
from finetuneflow.v1.fine_tuning_service_pb2 import WatchFineTuningJobResponse as Response
from tests.fakes.gateway import JOB, FakeGateway, Running, history, refuse


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_interrupted_watch_neither_skips_nor_repeats_events(client: Client, gateway: FakeGateway) -> None:
    gateway.cut_watch_after = [1, 4, 0, 7, 2]
    losses = []
    disconnects: list[Exception] = []
    sequences = []
    for event in client.jobs.watch(JOB, on_disconnect=disconnects.append):
        sequences.append(event.sequence)
        if event.kind == "log":
            losses.append(event.log.loss)
    assert sequences == list(range(1, len(gateway.events) + 1))
    assert len(losses) == 20
    assert len(disconnects) == 5
    assert [request.after_sequence for request in gateway.requests("WatchFineTuningJob")] == [0, 1, 5, 5, 12, 14]


def test_watch_reconnects_to_restarted_server(client: Client, gateway: FakeGateway, server: Running) -> None:
    gateway.cut_watch_after = [9]
    restarted = threading.Event()

    def restart(_: Exception) -> None:
        if not restarted.is_set():
            restarted.set()
            server.stop()
            threading.Timer(0.3, server.start).start()

    sequences = [event.sequence for event in client.jobs.watch(JOB, on_disconnect=restart)]
    assert restarted.is_set()
    assert sequences == list(range(1, len(gateway.events) + 1))


def test_watch_gives_up_on_unreachable_server_with_its_address(
    client: Client, gateway: FakeGateway, server: Running
) -> None:
    gateway.cut_watch_after = [3]
    with pytest.raises(ServerUnreachable, match=server.address) as caught:
        for _ in client.jobs.watch(JOB, give_up_after_seconds=0.3, on_disconnect=lambda _: server.stop()):
            pass
    assert "ftf up" in str(caught.value)


def test_a_filter_that_hides_the_terminal_event_still_ends_the_watch(client: Client, gateway: FakeGateway) -> None:
    gateway.cut_watch_after = [10]
    steps = [event.log.step for event in client.jobs.watch(JOB, kinds=["log"])]
    assert steps == list(range(1, 21))


def test_watching_from_the_end_of_an_ended_job_ends_at_once(client: Client, gateway: FakeGateway) -> None:
    assert list(client.jobs.watch(JOB, after_sequence=len(gateway.events))) == []


def test_watch_of_unknown_job_raises_not_found(client: Client) -> None:
    with pytest.raises(NotFound) as caught:
        next(client.jobs.watch("ftjob_nope"))
    assert caught.value.reason == "JOB_NOT_FOUND"


def test_an_event_has_the_payload_of_its_kind_only(client: Client) -> None:
    event = next(client.jobs.watch(JOB, kinds=["log"]))
    assert event.log.extras == {}
    assert event.severity == "INFO"
    assert event.stage == "TRAINING"
    with pytest.raises(AttributeError, match="has kind 'log'"):
        _ = event.eval


def test_stopped_watch_leaves_no_open_stream(client: Client, gateway: FakeGateway) -> None:
    """Otherwise a web server would keep one stream and one thread per page view."""
    gateway.hold = threading.Event()
    gateway.events = gateway.events[:4]
    client.jobs.get(JOB)
    threads = threading.active_count()
    for _ in range(3):
        events = client.jobs.watch(JOB)
        for _ in gateway.events:
            next(events)
        wait_until(lambda: gateway.watching == 1)
        events.close()
        wait_until(lambda: gateway.watching == 0)
    wait_until(lambda: threading.active_count() <= threads + 1)


def test_break_out_of_the_loop_ends_the_stream(client: Client, gateway: FakeGateway) -> None:
    gateway.hold = threading.Event()
    for _ in client.jobs.watch(JOB, kinds=["log"]):
        break
    wait_until(lambda: gateway.watching == 0)


def test_wait_returns_the_finished_job(client: Client) -> None:
    job = client.jobs.wait(JOB, timeout=5)
    assert job.state == "SUCCEEDED"
    assert job.fault is None
    assert client.evaluations.get(job.evaluation_id).delta == -1.0


def test_wait_raises_job_failed(client: Client, gateway: FakeGateway) -> None:
    gateway.events = history(failed=True)
    with pytest.raises(JobFailed) as caught:
        client.jobs.wait(JOB)
    assert (caught.value.fault, caught.value.reason) == ("USER_ERROR", "BAD_DATA")
    assert caught.value.advice == "correct row 17"


def test_wait_for_a_cancelled_job_raises(client: Client, gateway: FakeGateway) -> None:
    gateway.events[-1].state_changed.state = fine_tuning_job_pb2.JOB_STATE_CANCELLED
    with pytest.raises(JobCancelled):
        client.jobs.wait(JOB)


def test_wait_raises_after_its_timeout(client: Client, gateway: FakeGateway) -> None:
    gateway.events = gateway.events[:8]
    with pytest.raises(TimeoutError):
        client.jobs.wait(JOB, timeout=0.4)


def scripted_response(gateway: FakeGateway, *numbers: int, through: int) -> Response:
    return Response(events=[gateway.events[number - 1] for number in numbers], through_sequence=through)


def test_repeated_reordered_or_missing_events_are_corrected(client: Client, gateway: FakeGateway) -> None:
    """A faulty gateway must not cause gaps or duplicate points in a curve."""
    gateway.scripts = [
        [
            scripted_response(gateway, 1, 2, through=2),
            scripted_response(gateway, 2, 1, through=2),
            scripted_response(gateway, 4, 3, through=4),
        ],
        [scripted_response(gateway, 5, through=5), scripted_response(gateway, 8, 9, through=9)],
        [scripted_response(gateway, 6, 6, 7, through=7), scripted_response(gateway, through=11)],
        [scripted_response(gateway, 3, 4, through=4)],
    ]
    disconnects: list[Exception] = []
    sequences = [event.sequence for event in client.jobs.watch(JOB, on_disconnect=disconnects.append)]
    assert sequences == list(range(1, len(gateway.events) + 1))
    assert [request.after_sequence for request in gateway.requests("WatchFineTuningJob")] == [0, 4, 5, 7, 7]
    assert "the events 6 to 7 are missing" in str(disconnects[1])


def test_stream_that_ends_before_the_job_is_reopened(client: Client, gateway: FakeGateway) -> None:
    """A proxy that closes streams after a while does not end a job."""
    gateway.scripts = [[scripted_response(gateway, 1, 2, 3, through=3)], []]
    assert len(list(client.jobs.watch(JOB))) == len(gateway.events)


def test_watch_gives_up_on_server_that_only_closes_streams(client: Client, gateway: FakeGateway) -> None:
    """Otherwise the client would reconnect for ever without an error."""
    gateway.scripts = [[scripted_response(gateway, through=0)] for _ in range(1000)]
    gateway.events = gateway.events[:8]
    with pytest.raises(Unavailable, match="before it ended"):
        list(client.jobs.watch(JOB, give_up_after_seconds=0.3))


def test_separate_outages_of_job_without_events_do_not_add_up(
    client: Client, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway answered between them; it had no events to send."""
    monkeypatch.setattr("finetuneflow.watching._ALIVE_SECONDS", 0.0)
    gateway.scripts = [[scripted_response(gateway, through=0)] for _ in range(20)]
    assert len(list(client.jobs.watch(JOB, give_up_after_seconds=0.3))) == len(gateway.events)


def test_internal_errors_during_watch_are_retried(client: Client, gateway: FakeGateway) -> None:
    """A database that is restarted answers every query with an error for some seconds."""
    left = [3]

    def refuse_internal(context: grpc.ServicerContext) -> None:
        if left[0]:
            left[0] -= 1
            refuse(context, grpc.StatusCode.INTERNAL, "incident 7f3a", "INTERNAL")

    gateway.refusals["WatchFineTuningJob"] = refuse_internal
    assert len(list(client.jobs.watch(JOB))) == len(gateway.events)
