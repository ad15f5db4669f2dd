"""Pushes to a stand-in of the hub, which is limited, broken or refuses."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from engine.errors import JobError, SystemFailure
from engine.hub_push import FileToPush, PushedCommit, PushTarget, push
from tests.fakes.hub import Hub

TARGET = PushTarget("org/tuned", private=True, revision="main", commit_message="Upload it")
CARD = b"---\nbase_model: org/base\nlicense: mit\n---\n# A model"
CONTENT = {"README.md": CARD, "adapter_model.safetensors": b"weights" * 50_000, "merged/config.json": b"{}"}
WEIGHTS = hashlib.sha256(CONTENT["adapter_model.safetensors"]).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hub = Hub(tmp_path)
    hub.writes.writers = {"hf_writer": "org"}
    hub.writes.members = {"hf_member"}
    with hub.asked():
        yield hub


def pushed(
    folder: Path,
    target: PushTarget = TARGET,
    *,
    token: str = "hf_writer",  # noqa: S107
    patience_seconds: float = 10,
    said: list[str] | None = None,
) -> PushedCommit:
    """`said` gets the reason of each repetition. No time passes but that between them, which is not waited for."""
    files: dict[str, FileToPush] = {}
    waited = []

    def on_retry(why: str, seconds: float) -> None:
        waited.append(seconds)
        if said is not None:
            said.append(why)

    for name, content in CONTENT.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        files[name] = FileToPush((folder / name).open("rb").detach(), lambda: None)
    return push(
        target,
        files,
        {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()},
        token,
        patience_seconds=patience_seconds,
        on_hashed=lambda: [setattr(file, "furthest", 0) for file in files.values()],
        on_retry=on_retry,
        clock=lambda: sum(waited),
    )


def test_files_arrive_as_one_commit_and_equal_content_makes_no_second_one(hub: Hub, tmp_path: Path) -> None:
    """A killed export is repeated: two commits of the same files would look like two versions."""
    first = pushed(tmp_path)
    repository = hub.writes.repositories["org/tuned"]
    assert {name: file.content for name, file in repository.branches["main"].items()} == CONTENT
    assert repository.private and [commit.summary for commit in repository.commits] == ["Upload it"]
    assert first == PushedCommit(f"{hub.endpoint}/org/tuned/commit/{first.oid}", repository.commits[0].oid)
    hub.writes.requests.clear()
    assert pushed(tmp_path) == first
    assert not [each for each in hub.writes.requests if "PUT" in each or "/commit/" in each]
    branch = pushed(tmp_path, replace(TARGET, revision="release/1"))
    assert branch.oid and [commit.branch for commit in repository.commits] == ["main"], "the branch has it from main"


@pytest.mark.parametrize(
    "fault",
    [
        ("repos/create", 429),
        ("validate-yaml", 500),
        ("POST api/models/org/tuned/commit", 503),
        ("POST api/models/org/tuned/commit", 412),
        ("POST api/models/org/tuned/commit", "drop"),
        ("POST api/models/org/tuned/commit", "lose"),
    ],
)
def test_push_is_repeated_without_sending_anything_twice(
    hub: Hub, tmp_path: Path, fault: tuple[str, int | str]
) -> None:
    """Gigabytes are sent for hours; the hub limits rates and closes connections."""
    hub.writes.faults = [fault]
    said: list[str] = []
    commit = pushed(tmp_path, said=said)
    assert len(said) == 1 and not hub.writes.faults
    repository = hub.writes.repositories["org/tuned"]
    assert [each.oid for each in repository.commits] == [commit.oid]
    assert hub.writes.requests.count(f"PUT upload/{WEIGHTS}") == 1


def test_upload_that_breaks_off_is_sent_again(hub: Hub, tmp_path: Path) -> None:
    hub.writes.faults = [("PUT upload", "drop")]
    pushed(tmp_path)
    assert hub.writes.large_files[WEIGHTS] == CONTENT["adapter_model.safetensors"]


def test_hub_that_stays_down_is_an_error_of_the_system(hub: Hub, tmp_path: Path) -> None:
    """It must not hold the exporter: the next attempt comes later."""
    hub.writes.faults = [("repos/create", 500)] * 99
    said: list[str] = []
    with pytest.raises(SystemFailure) as caught:
        pushed(tmp_path, patience_seconds=30, said=said)
    assert caught.value.reason == "HUB_UNREACHABLE" and "status 500" in caught.value.message
    assert caught.value.__cause__ is None
    assert len(said) == 4, "after 1, 2, 4 and 8 seconds"


def test_patience_begins_anew_when_more_was_sent(hub: Hub, tmp_path: Path) -> None:
    """An upload of hours that comes forward is not given up for failures that it had at its beginning."""
    hub.writes.faults = [("repos/create", 500)] * 2 + [("POST api/models/org/tuned/commit", 503)] * 2
    said: list[str] = []
    pushed(tmp_path, patience_seconds=4, said=said)
    assert len(said) == 4


@pytest.mark.parametrize(
    ("target", "token", "reason", "text"),
    [
        (TARGET, "hf_unknown", "HUB_TOKEN_REFUSED", "refuses the token"),
        (TARGET, "hf_member", "HUB_PUSH_FORBIDDEN", "the rights to create"),
        (replace(TARGET, repo_id="orgg/tuned"), "hf_writer", "HUB_NAMESPACE_NOT_FOUND", "'orgg'"),
        (replace(TARGET, repo_id="org/there", private=False), "hf_writer", "HUB_VISIBILITY_DIFFERS", "is private"),
        (replace(TARGET, repo_id="org/there"), "hf_member", "HUB_PUSH_FORBIDDEN", "need write access"),
        (replace(TARGET, repo_id="org/ignoring"), "hf_writer", "HUB_PUSH_REFUSED", ".gitignore"),
    ],
)
def test_refusals_say_what_to_change(
    hub: Hub, tmp_path: Path, target: PushTarget, token: str, reason: str, text: str
) -> None:
    """An hour-long export that fails with a status alone leaves its caller without a next step."""
    pushed(tmp_path, replace(TARGET, repo_id="org/there"))
    pushed(tmp_path, replace(TARGET, repo_id="org/ignoring"))
    hub.writes.repositories["org/ignoring"].ignored.add("README.md")
    commits = {name: len(each.commits) for name, each in hub.writes.repositories.items()}
    with pytest.raises(JobError) as caught:
        pushed(tmp_path, target, token=token)
    assert caught.value.reason == reason and text in caught.value.message and caught.value.advice
    assert {name: len(each.commits) for name, each in hub.writes.repositories.items()} == commits


def test_content_that_the_hub_refuses_is_told_in_its_words(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONTENT, "README.md", b"---\nbase_model: tiny\nlicense: mit\n---\n# A model")
    with pytest.raises(JobError, match="'tiny' is not a valid model id") as caught:
        pushed(tmp_path)
    assert caught.value.reason == "HUB_PUSH_REFUSED"


def test_file_that_has_changed_is_not_pushed(hub: Hub, tmp_path: Path) -> None:
    """What was verified and stored must be what is published."""
    file = tmp_path / "file"
    file.write_bytes(b"another")
    files = {"file": FileToPush(file.open("rb").detach(), lambda: None)}
    with pytest.raises(RuntimeError, match="has changed"):
        push(
            TARGET,
            files,
            {"file": "0" * 64},
            "hf_writer",
            patience_seconds=0,
            on_hashed=lambda: None,
            on_retry=lambda *_: None,
        )
    assert not hub.writes.requests
