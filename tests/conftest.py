import math
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.nats import NatsServer

# Servers of tests must not leave their keys in the developer's own file.
os.environ["FTF_CREDENTIALS"] = f"{tempfile.mkdtemp(prefix='ftf-test-credentials-')}/credentials.json"
# It takes seconds of the processor from the tests beside it; those about it ask for it.
os.environ.setdefault("FTF_TRAINER_WARM_SPARE", "false")
# Tests stop servers on purpose; at a lower level gRPC's client logs each of them ("Got goaway").
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
# A training within a test is no child without a hub: trl would tell the hub of it, from a thread.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


@pytest.fixture(autouse=True)
def limits_of_this_process() -> Iterator[None]:
    """Takes back limits that a child sets for itself, where a test runs it in this process: they would end the rest."""
    seconds = resource.getrlimit(resource.RLIMIT_CPU)
    yield
    resource.setrlimit(resource.RLIMIT_CPU, seconds)
    if templates := sys.modules.get("engine.data.template_limits"):
        templates.limited_time.total_seconds = math.inf


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random weights are the same in every run: a comparison within a tolerance passes always, or never."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A running nats-server with JetStream: `url`, `user`, `password`, `stop()`, `restart()`, `wipe()`."""
    folder = tmp_path / "nats"
    folder.mkdir()
    server = NatsServer(folder)
    server.start()
    yield server
    server.stop()
