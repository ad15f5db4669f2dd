import threading

import pytest

from finetuneflow import Client, JobCancelled, JobFailed, NotFound, ServerUnreachable
from finetuneflow.v1 import fine_tuning_job_pb2
from tests.sdk.fake_gateway import JOB, FakeGateway, Running, history


def test_a_stream_cut_anywhere_goes_on_without_a_gap_or_a_repeat(client: Client, gateway: FakeGateway) -> None:
    gateway.cut_watch_after = [1, 4, 0, 7, 2]
    losses = []
    heard: list[Exception] = []
    sequences = []
    for event in client.jobs.watch(JOB, on_disconnect=heard.append):
        sequences.append(event.sequence)
        if event.kind == "log":
            losses.append(event.log.loss)
    assert sequences == list(range(1, len(gateway.events) + 1))
    assert len(losses) == 20
    assert len(heard) == 5
    assert [request.after_sequence for request in gateway.requests("WatchFineTuningJob")] == [0, 1, 5, 5, 12, 14]


def test_a_restarted_server_is_found_again(client: Client, gateway: FakeGateway, server: Running) -> None:
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


def test_a_server_that_stays_away_is_given_up_with_its_address(
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


def test_an_unknown_job_is_not_waited_for(client: Client) -> None:
    with pytest.raises(NotFound) as caught:
        next(client.jobs.watch("ftjob_nope"))
    assert caught.value.reason == "JOB_NOT_FOUND"


def test_an_event_has_the_payload_of_its_kind_only(client: Client) -> None:
    event = next(client.jobs.watch(JOB, kinds=["log"]))
    assert event.log.extras == {}
    assert event.severity == "INFO"
    assert event.stage == "TRAINING"
    with pytest.raises(AttributeError, match="of kind 'log'"):
        _ = event.eval


def test_a_stopped_watch_leaves_no_stream_behind(client: Client) -> None:
    events = client.jobs.watch(JOB)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert client.jobs.get(JOB).ended


def test_wait_returns_the_finished_job(client: Client) -> None:
    job = client.jobs.wait(JOB, timeout=5)
    assert job.state == "SUCCEEDED"
    assert job.fault is None
    assert client.evaluations.get(job.evaluation_id).delta == -1.0


def test_wait_raises_what_went_wrong(client: Client, gateway: FakeGateway) -> None:
    gateway.events = history(failed=True)
    with pytest.raises(JobFailed) as caught:
        client.jobs.wait(JOB)
    assert (caught.value.fault, caught.value.reason) == ("USER_ERROR", "BAD_DATA")
    assert caught.value.advice == "mend row 17"


def test_wait_for_a_cancelled_job(client: Client, gateway: FakeGateway) -> None:
    gateway.events[-1].state_changed.state = fine_tuning_job_pb2.JOB_STATE_CANCELLED
    with pytest.raises(JobCancelled):
        client.jobs.wait(JOB)


def test_wait_has_an_end(client: Client, gateway: FakeGateway) -> None:
    gateway.events = gateway.events[:8]
    with pytest.raises(TimeoutError):
        client.jobs.wait(JOB, timeout=0.4)
