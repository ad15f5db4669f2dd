"""Who may use a model of the hub that is on this machine: for one that is not public, the hub is asked each time."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.catalogue import Catalogue
from engine.errors import JobError, SystemFailure
from engine.hub import HubToken, TokenOf, anonymous
from tests.fakes.hub import COMMIT, Hub
from tests.tiny_models import make_tiny_model

PINNED = f"org/tiny@{COMMIT}"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with Hub(make_tiny_model(tmp_path / "tiny")).asked() as hub:
        yield hub


@pytest.fixture
def gated(hub: Hub) -> Hub:
    hub.readers = {"hf_reader"}
    return hub


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    return Catalogue(tmp_path / "home")


def of(token: str) -> TokenOf:
    def same(_repository: str) -> HubToken:
        return token

    return same


def reason_of(catalogue: Catalogue, reference: str, token: TokenOf) -> str:
    with pytest.raises((JobError, SystemFailure)) as fetched:
        catalogue.fetch(reference, token)
    with pytest.raises((JobError, SystemFailure)) as described:
        catalogue.describe(reference, token)
    assert fetched.value.reason == described.value.reason  # type: ignore[attr-defined]
    return str(fetched.value.reason)  # type: ignore[attr-defined]


@pytest.mark.parametrize("reference", ["org/tiny", PINNED])
def test_a_gated_model_on_the_node_is_for_those_who_may_read_it(
    gated: Hub, catalogue: Catalogue, reference: str
) -> None:
    """One caller's licence would otherwise serve all others of the system."""
    path = catalogue.fetch(reference, of("hf_reader")).path
    sent = dict(gated.sent)
    assert reason_of(catalogue, reference, anonymous) == "MODEL_GATED"
    assert reason_of(catalogue, reference, of("hf_other")) == "MODEL_GATED"
    assert catalogue.fetch(reference, of("hf_reader")).path == path
    assert gated.sent == sent, "it was downloaded once"
    assert {"", "hf_other", "hf_reader"} == set(gated.checks)


def test_a_right_that_ends_ends_the_use_of_the_downloaded_model(gated: Hub, catalogue: Catalogue) -> None:
    catalogue.fetch(PINNED, of("hf_reader"))
    gated.readers = set()
    assert reason_of(catalogue, PINNED, of("hf_reader")) == "MODEL_GATED"


def test_a_download_that_was_interrupted_is_not_completed_for_another(
    gated: Hub, catalogue: Catalogue, tmp_path: Path
) -> None:
    """The hub's client takes over complete files of a commit without a request."""
    folder = catalogue.fetch(PINNED, of("hf_reader")).path
    shutil.move(folder, folder.with_name(f".{folder.name}.partial"))
    assert reason_of(catalogue, PINNED, of("hf_other")) == "MODEL_GATED"


def test_a_public_model_needs_no_question(hub: Hub, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pinned public model on the node works without the hub."""
    catalogue.fetch(PINNED, anonymous)
    assert hub.checks == []
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert catalogue.fetch(PINNED, of("hf_other")).revision == COMMIT


def test_a_public_model_of_an_older_version_is_asked_about_once(hub: Hub, catalogue: Catalogue) -> None:
    """It did not note which models are public."""
    folder = catalogue.fetch(PINNED, anonymous).path
    folder.with_name(f".{COMMIT}.public").unlink()
    for _ in range(3):
        catalogue.fetch(PINNED, anonymous)
    assert hub.checks == [""]


def test_an_unreachable_hub_refuses_the_gated_model_on_the_node(
    gated: Hub, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody's right is guessed; the failure is the system's, so the job is retried."""
    catalogue.fetch(PINNED, of("hf_reader"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SystemFailure, match="could not be asked whether you may use it") as caught:
        catalogue.fetch(PINNED, of("hf_reader"))
    assert caught.value.reason == "HUB_UNREACHABLE"
    assert "FTF_HUB_CACHE_SHARED" in caught.value.advice


def test_a_shared_cache_serves_everybody_without_a_question(
    gated: Hub, catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For operators whose contract with the owner of a model includes all callers."""
    shared = Catalogue(tmp_path / "home", shared=True)
    assert reason_of(shared, PINNED, anonymous) == "MODEL_GATED", "nothing is downloaded yet"
    path = catalogue.fetch(PINNED, of("hf_reader")).path
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert shared.fetch(PINNED, anonymous).path == path
    assert reason_of(catalogue, PINNED, anonymous) == "HUB_UNREACHABLE", "sharing leaves no trace when it ends"


def test_an_expired_token_is_named_as_the_cause(hub: Hub, catalogue: Catalogue) -> None:
    """As an outage of the hub it would be retried until the attempts are used up."""
    hub.expired = {"hf_expired"}
    assert reason_of(catalogue, "org/tiny", of("hf_expired")) == "HUB_TOKEN_REFUSED"
