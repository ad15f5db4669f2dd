"""The client against two real gateways on one database and one broker."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetuneflow import AsyncClient, Client, FailedPrecondition
from standalone.guard import guarded
from standalone.ports import free_port
from tests.servers.nats import NatsServer


class GatewayPair:
    """Two gateway processes of one system."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.nats = NatsServer(home)
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        return ",".join(self.addresses)

    def start(self, address: str) -> None:
        environment = {
            "FTF_HOME": str(self.home),
            **self.nats.environment("gateway"),
            "FTF_GATEWAY_INSECURE": "true",
            "FTF_GATEWAY_LISTEN": address,
            "FTF_MODELS": json.dumps({}),
        }
        with (self.home / "gateway.log").open("ab") as log:
            self.processes[address] = subprocess.Popen(
                guarded([sys.executable, "-m", "gateway"]), env=os.environ | environment, stdout=log, stderr=log
            )

    def kill(self, address: str) -> None:
        self.processes[address].kill()
        self.processes.pop(address).wait()

    def stop(self) -> None:
        for address in list(self.processes):
            self.kill(address)
        self.nats.stop()


@pytest.fixture(scope="module")
def gateway_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayPair]:
    gateway_pair = GatewayPair(tmp_path_factory.mktemp("home"))
    gateway_pair.nats.start()
    for address in gateway_pair.addresses:
        gateway_pair.start(address)
    for address in gateway_pair.addresses:
        with Client(address) as client:
            while True:
                try:
                    [*client.recipes.list()]
                except Exception:  # noqa: BLE001 - it is still starting
                    assert gateway_pair.processes[address].poll() is None, (
                        gateway_pair.home / "gateway.log"
                    ).read_text()
                else:
                    break
    yield gateway_pair
    gateway_pair.stop()


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n')
    return path


def test_watch_survives_restart_of_each_gateway(gateway_pair: GatewayPair, rows: Path) -> None:
    """Gateways are replaced one after the other; a watch of a week delivers every event once."""
    sequences: list[int] = []
    seen = threading.Semaphore(0)

    def follow(client: Client, job_id: str) -> None:
        for event in client.jobs.watch(job_id):
            sequences.append(event.sequence)
            seen.release()

    with Client(gateway_pair.address) as client, Client(gateway_pair.address) as other:
        job = client.jobs.create(base_model="smollm2-135m", training_data=rows)
        thread = threading.Thread(target=follow, args=(client, job.id))
        thread.start()
        assert seen.acquire(timeout=20)
        for address in gateway_pair.addresses:
            gateway_pair.kill(address)
            other.jobs.pause(job.id)
            assert seen.acquire(timeout=30)
            other.jobs.resume(job.id)
            assert seen.acquire(timeout=30)
            gateway_pair.start(address)
        last = other.jobs.cancel(job.id)
        thread.join(30)
        assert not thread.is_alive()
        assert other.jobs.cancel(job.id).state == "CANCELLED", "a repeated cancel is no error"
    assert sequences == list(range(1, last.last_sequence + 1))


async def test_async_client_methods_that_need_no_worker(gateway_pair: GatewayPair, rows: Path) -> None:
    async with AsyncClient(gateway_pair.address) as client:
        dataset = await client.datasets.upload(rows)
        assert (await client.datasets.get(dataset.id)).sha256 == dataset.sha256
        assert dataset.id in [found.id async for found in client.datasets.list()]
        job = await client.jobs.create(base_model="smollm2-135m", training_data=dataset.id, labels={"team": "a"})
        assert [found.id async for found in client.jobs.list(labels={"team": "a"})] == [job.id]
        assert (await client.jobs.pause(job.id)).state == "PAUSED"
        assert (await client.jobs.resume(job.id)).state == "VALIDATING"
        with pytest.raises(FailedPrecondition):
            await client.jobs.delete(job.id)
        assert (await client.jobs.cancel(job.id)).state == "CANCELLED"
        job = await client.jobs.get(job.id)
        assert [event.sequence async for event in client.jobs.events(job.id)] == list(range(1, job.last_sequence + 1))
        assert await client.jobs.checkpoints(job.id) == []
        assert await client.jobs.metrics(job.id) == {}
        assert [artifact async for artifact in client.artifacts.list(job.id)] == []
        assert "smollm2-135m" in [model.id async for model in client.models.list()]
        assert (await client.recipes.get("cpu-demo")).name == "cpu-demo"
        await client.jobs.delete(job.id)
        await client.datasets.delete(dataset.id)


async def test_one_client_opens_a_thousand_watches(gateway_pair: GatewayPair, rows: Path) -> None:
    """A company's dashboard behind one client: no limit on streams may make some of them wait for others to end."""
    async with AsyncClient(gateway_pair.address) as client:
        job = await client.jobs.create(base_model="smollm2-135m", training_data=rows)
        begun = 0
        all_begun = asyncio.Event()

        async def follow() -> list[int]:
            nonlocal begun
            sequences = []
            async for event in client.jobs.watch(job.id):
                if not sequences:
                    begun += 1
                    if begun == 1000:
                        all_begun.set()
                sequences.append(event.sequence)
            return sequences

        following = asyncio.gather(*(follow() for _ in range(1000)))
        await asyncio.wait_for(all_begun.wait(), 60)
        last = await client.jobs.cancel(job.id)
        assert await asyncio.wait_for(following, 60) == [list(range(1, last.last_sequence + 1))] * 1000
