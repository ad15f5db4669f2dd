"""AsyncClient has the same methods as Client, as coroutines."""

import asyncio
import inspect
import threading
from pathlib import Path

import pytest

from finetuneflow import AsyncClient, Client, FineTuneFlowError, InvalidArgument, JobFailed, NotFound
from tests.fakes.gateway import JOB, FakeGateway, Running, history

NOUNS = ("jobs", "datasets", "artifacts", "models", "evaluations", "exports", "recipes", "probe")


def methods(noun: object) -> dict[str, list[str]]:
    members = inspect.getmembers(noun, callable)
    return {name: list(inspect.signature(m).parameters) for name, m in members if not name.startswith("_")}


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    """Otherwise a user who moves from one client to the other would have to change more than adding `await`."""
    with Client() as blocking:
        awaited = AsyncClient()
        for noun in NOUNS:
            assert methods(getattr(blocking, noun)) == methods(getattr(awaited, noun))
            assert methods(getattr(blocking, noun))
        assert inspect.getdoc(blocking.jobs.watch) == inspect.getdoc(awaited.jobs.watch)


async def test_async_client_runs_a_job_from_upload_to_download(
    server: Running, gateway: FakeGateway, tmp_path: Path
) -> None:
    rows = tmp_path / "train.jsonl"
    rows.write_text('{"question": "q", "answer": "a"}\n')
    gateway.files = {"export/report.md": b"# report"}
    gateway.cut_watch_after = [4, 9]
    gateway.outages = {"CreateFineTuningJob": 2}
    seen: list[tuple[str, int, int]] = []
    client = AsyncClient(server.address)
    async with client:
        job = await client.jobs.create(
            base_model="m", training_data=rows, on_upload=lambda name, done, total: seen.append((name, done, total))
        )
        assert [*gateway.uploads.values()] == [rows.read_bytes()]
        assert seen == [("train.jsonl", rows.stat().st_size, rows.stat().st_size)]
        assert [event.sequence async for event in client.jobs.watch(job.id)] == list(range(1, len(gateway.events) + 1))
        job = await client.jobs.wait(job.id)
        assert (await client.evaluations.get(job.evaluation_id)).delta == -1.0
        assert (await client.exports.get(job.export_id)).formats == ("ADAPTER",)
        assert (await client.jobs.metrics(job.id))["loss"].steps == [1, 2, 3, 4, 5]
        assert [path.read_bytes() for path in await client.jobs.download(job.id, tmp_path / "out")] == [b"# report"]
        assert [dataset.id async for dataset in client.datasets.list()] == [*gateway.uploads]
        assert [event.kind async for event in client.jobs.events(job.id, kinds=["eval"])] == ["eval"]
        assert [model.kind async for model in client.models.list(kind="base")] == ["BASE"]
        assert [recipe.name async for recipe in client.recipes.list()] == ["cpu-demo"]
        assert (await client.probe.hardware())[0].node_id == "probe-one-0a1b"
        assert (await client.jobs.cancel(job.id)).state == "CANCELLING"
        gateway.jobs = 120
        assert len([job async for job in client.jobs.list(limit=110)]) == 110


async def test_refusals_raise_the_same_exceptions_as_in_the_blocking_client(
    server: Running, gateway: FakeGateway
) -> None:
    gateway.events = history(failed=True)
    async with AsyncClient(server.address) as client:
        with pytest.raises(NotFound):
            await client.jobs.get("ftjob_nope")
        with pytest.raises(InvalidArgument, match="did you mean"):
            await client.jobs.create(base_model="m", training_data="ds_1", method="lorra")
        with pytest.raises(JobFailed):
            await client.jobs.wait(JOB)


async def test_cancelled_watch_leaves_no_stream_and_no_thread(server: Running, gateway: FakeGateway) -> None:
    """A web handler is cancelled when its browser disconnects; its stream must not stay open."""
    gateway.hold = threading.Event()
    async with AsyncClient(server.address) as client:
        for _ in range(2):
            reached = asyncio.Event()

            async def follow(reached: asyncio.Event) -> None:
                async for event in client.jobs.watch(JOB, kinds=["log"]):
                    if event.log.step == 20:
                        reached.set()

            gateway.events = history()[:-1]
            task = asyncio.create_task(follow(reached))
            await asyncio.wait_for(reached.wait(), 10)
            while gateway.watching != 1:  # noqa: ASYNC110 - it lives in a thread of the server
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with asyncio.timeout(10):
                while gateway.watching:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.005)


async def test_cancelled_upload_ends_its_thread(server: Running, gateway: FakeGateway, tmp_path: Path) -> None:
    """Otherwise a cancelled request would continue to send gigabytes."""
    rows = tmp_path / "big.jsonl"
    rows.write_bytes(b"x" * 8_000_000)
    loop, started = asyncio.get_running_loop(), asyncio.Event()
    sent: list[int] = []

    def progress(done: int, total: int) -> None:
        sent.append(done)
        loop.call_soon_threadsafe(started.set)
        threading.Event().wait(0.05)

    async with AsyncClient(server.address) as client:
        uploading = asyncio.create_task(client.datasets.upload(rows, progress=progress))
        await asyncio.wait_for(started.wait(), 10)
        uploading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await uploading
        assert sent[-1] < 8_000_000
        assert not gateway.uploads


def test_async_client_can_be_created_without_event_loop(server: Running) -> None:
    client = AsyncClient(server.address)

    async def main() -> str:
        async with client:
            return (await client.jobs.get(JOB)).id

    assert asyncio.run(main()) == JOB


async def test_blocking_client_works_inside_an_event_loop(client: Client) -> None:
    """In a notebook everything runs inside one."""
    assert next(client.jobs.watch(JOB)).sequence == 1
    assert client.jobs.wait(JOB).state == "SUCCEEDED"


def test_use_in_second_event_loop_raises_a_clear_error(server: Running) -> None:
    """asyncio.run twice with one client ended in "Event loop is closed", from deep inside a library."""
    client = AsyncClient(server.address)

    async def count() -> int:
        return len([job async for job in client.jobs.list()])

    async def watch() -> None:
        async for _ in client.jobs.watch(JOB):
            return

    asyncio.run(count())
    for again in (count, watch):
        with pytest.raises(FineTuneFlowError, match="another event loop") as caught:
            asyncio.run(again())
        assert "one client in each event loop" in caught.value.advice
