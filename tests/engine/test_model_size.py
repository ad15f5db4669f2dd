"""A model on the hub that is too large is refused before a byte of its weights is downloaded."""

import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.catalogue import Catalogue
from engine.errors import LimitExceeded, SystemFailure
from tests.fakes.hub import Hub
from tests.tiny_models import make_tiny_model


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(make_tiny_model(tmp_path / "tiny")).asked() as hub:
        yield hub


def test_a_model_above_the_operators_limit_is_not_downloaded(hub: Hub, tmp_path: Path) -> None:
    """One job could otherwise fill the disk of every node."""
    size = (tmp_path / "tiny" / "model.safetensors").stat().st_size
    with pytest.raises(LimitExceeded, match=r"have [\d,]+ bytes; the limit is [\d,]+ bytes") as caught:
        Catalogue(tmp_path / "home", max_model_bytes=size).fetch("org/tiny")
    assert (caught.value.reason, caught.value.setting) == ("MODEL_TOO_LARGE", "FTF_MAX_MODEL_BYTES")
    assert "model.safetensors" not in hub.sent
    Catalogue(tmp_path / "home", max_model_bytes=2 * size).fetch("org/tiny")


def test_a_model_that_does_not_fit_on_the_disk_is_not_downloaded(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(SystemFailure, match=r"needs [\d,]+ more bytes .* 1,000 free bytes") as caught:
        Catalogue(tmp_path / "home").fetch("org/tiny")
    assert caught.value.reason == "DISK_FULL"
    assert "model.safetensors" not in hub.sent
