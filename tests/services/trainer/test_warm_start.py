"""The trainer's warm spare, with the real imports."""

import asyncio
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chassis.child.child_process import ChildCommand
from chassis.child.pipe import EventSink
from chassis.child.spare import Spare, SpareCommand
from finetuneflow.v1 import event_pb2
from services.attempt_inputs import child_environment
from services.trainer.settings import TrainerSettings

MakeInput = Callable[..., Any]


async def test_spare_child_and_cold_child_train_bit_identical_models(make_input: MakeInput, tmp_path: Path) -> None:
    """A training may continue in the other kind of child. A spare that initialises a device before the job would use
    another job's device."""
    from services.trainer.worker.recipe import train

    warm = make_input("warm", total_steps=4)
    environment = child_environment(TrainerSettings(home=tmp_path, threads=1))
    spare = Spare(SpareCommand([sys.executable, "-m", "services.trainer.worker"], environment), tmp_path)
    spare.open()
    async with asyncio.timeout(120):
        while not spare.pid:  # noqa: ASYNC110 - it sends no notification
            await asyncio.sleep(0.05)
        pid = spare.pid
        file = tmp_path / "input.json"
        file.write_text(warm.model_dump_json())
        command = ChildCommand(
            [sys.executable, "-m", "services.trainer.worker", str(file)],
            warm.out_dir,
            environment,
            late_env={"CUDA_VISIBLE_DEVICES": ""},
            on_cpu=True,
            reads=[warm.model.path, warm.data_dir],
        )
        child = await spare.start(command, tmp_path)
        assert child.pid == pid
        async with contextlib.aclosing(child.frames()) as frames:
            events = [event_pb2.Event.FromString(frame) async for frame in frames if frame]
        await child.wait()
        await spare.close()
    assert events[-1].HasField("stage_completed"), (events[-1], child.last_lines())
    cold = make_input("cold", total_steps=4)
    train(cold, EventSink(None, None))
    adapters = [each.out_dir / "checkpoints/step-4/adapter_model.safetensors" for each in (warm, cold)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
