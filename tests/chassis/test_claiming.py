"""Claims that receive no response."""

import asyncio

from chassis.bus.event_bus import Bus
from finetuneflow.v1 import work_pb2
from tests.chassis.conftest import StartWorker
from tests.chassis.peers import ITEM, Gateway


class StoppedGateway(Gateway):
    """Receives claims, and grants them after it continues."""

    def __init__(self, bus: Bus) -> None:
        super().__init__(bus)
        self.awake = asyncio.Event()
        self.asked: asyncio.Queue[str] = asyncio.Queue()

    async def _claim(self, _subject: str, data: bytes) -> bytes:
        self.asked.put_nowait(work_pb2.ClaimRequest.FromString(data).claim_id)
        await self.awake.wait()
        return await super()._claim(_subject, data)


async def test_late_grant_of_suspended_gateway_is_run(bus: Bus, start_worker: StartWorker) -> None:
    """If no worker runs it, it would count as a failed attempt when its lease ends."""
    gateway = StoppedGateway(bus)
    await gateway.open()
    try:
        await start_worker(claim_answer_seconds=0.2, claim_repeats_seconds=0.5)
        await bus.publish_work("trainer", "default", ITEM)
        async with asyncio.timeout(30):
            ids = {await gateway.asked.get() for _ in range(6)}
        assert len(ids) == 1, "another id would be refused once the first is granted"
        gateway.awake.set()
        assert (await gateway.wait_for_ending()).HasField("stage_completed")
    finally:
        gateway.awake.set()
        await gateway.close()
