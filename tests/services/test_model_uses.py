"""The services keep the downloaded models that their children read."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from chassis.preparation import Preparation
from engine.errors import SystemFailure
from engine.hub_cache import FolderLock
from finetuneflow.v1.probe_service_pb2 import EstimateResourcesRequest
from finetuneflow.v1.validation_pb2 import ValidationReport
from services.attempt_inputs import catalogue, fetched_model
from services.hub_access import HubAccess
from services.probe.queries.query import ProbeQuery
from services.probe.queries.query_runner import ServedQueries
from services.probe.settings import ProbeSettings
from tests.fakes.hub import Hub
from tests.tiny_models import make_tiny_tokenizer


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    models = {}
    for name in ("tiny", "other"):
        models[f"org/{name}"] = folder = make_tiny_tokenizer(tmp_path / name)
        (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
        save_file({"w": numpy.zeros(1000, numpy.float32)}, str(folder / "model.safetensors"))
    with Hub(models["org/tiny"], models=models).asked() as hub:
        yield hub


@pytest.fixture
def settings(hub: Hub, tmp_path: Path) -> ProbeSettings:
    """There is room for one model."""
    size = sum(file.stat().st_size for file in hub.models["org/tiny"].iterdir())
    return ProbeSettings(home=tmp_path / "home", node_id="probe-1", warm_spare=False, hub_cache_bytes=size * 3 // 2)


def in_use(folder: Path) -> bool:
    with contextlib.closing(FolderLock(folder)) as lock:
        return not lock.try_exclude()


async def test_an_attempt_keeps_its_model_until_its_child_has_ended(settings: ProbeSettings) -> None:
    models = catalogue(settings)
    with contextlib.ExitStack() as held:
        preparation = Preparation(lambda _phase: None, 1.0, held)
        model = await preparation.run(fetched_model(models, "org/tiny", HubAccess()), 60.0)
        with pytest.raises(SystemFailure, match="those in use leave") as caught:
            models.fetch("org/other", HubAccess().token)
        assert caught.value.reason == "DISK_FULL"
        assert model.path.is_dir()
    models.fetch("org/other", HubAccess().token)
    assert not model.path.exists()


async def test_a_query_keeps_its_model_until_its_child_has_ended(
    settings: ProbeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[Path, bool] = {}

    async def run(_self: ServedQueries, query: ProbeQuery, _folder: Path, response: Any) -> Any:
        seen[query.provided.model.path] = in_use(query.provided.model.path)
        return response

    monkeypatch.setattr(ServedQueries, "_run", run)
    queries = ServedQueries(settings, catalogue(settings))
    request = EstimateResourcesRequest()
    request.spec.base_model = "org/tiny"
    request.spec.training_data.add(dataset="ds_1")
    await queries.run("CountTokens", request, "default", {}, ValidationReport())
    await queries.close()
    assert list(seen.values()) == [True]
    assert not in_use(next(iter(seen)))
