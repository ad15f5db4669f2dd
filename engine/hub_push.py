"""Pushes files to a model repository of the hub, as one commit."""

import copy
import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from engine.errors import JobError, SystemFailure, Violation

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_REPOSITORY: Final = "spec.export.hub.repo_id"
_USE: Final = "spec.secrets.hub_write_token"
_MAIN: Final = "main"
_TRANSIENT: Final = frozenset({408, 409, 412, 423, 429})
"""Statuses that a later request may not get, besides 5xx: timeouts, limits of rates, conflicts with other commits."""
_MAX_QUOTED: Final = 300
_FIRST_DELAY_SECONDS: Final = 1.0
"""Delay before the push is tried again; each one is twice the delay before."""


@dataclass(frozen=True)
class PushTarget:
    """A branch of a repository, and the commit that it gets."""

    repo_id: str
    private: bool
    revision: str
    commit_message: str


@dataclass(frozen=True)
class PushedCommit:
    """A commit on the hub."""

    url: str
    oid: str


class FileToPush(io.BufferedReader):
    """A file that reports how far it has been read. Whoever pushes it reads it several times."""

    def __init__(self, raw: io.RawIOBase, on_read: Callable[[], None]) -> None:
        super().__init__(raw)
        self.furthest = 0
        """Largest number of bytes of it that have been read, from its beginning. Set it to 0 to count anew."""
        self._on_read = on_read

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.furthest = max(self.furthest, self.tell())
        self._on_read()
        return data


def push(
    target: PushTarget,
    files: Mapping[str, FileToPush],
    sha256: Mapping[str, str],
    token: str,
    *,
    patience_seconds: float,
    on_hashed: Callable[[], None],
    on_retry: Callable[[str, float], None],
    clock: Callable[[], float] = time.monotonic,
) -> PushedCommit:
    """Pushes `files`, by their names in the repository. Returns the commit, or the branch's newest one if that has the
    same content. What may succeed later is repeated; `on_retry` is told why, and waits. It is given up when it has
    failed for `patience_seconds` without sending more of the files.

    Raises JobError HUB_TOKEN_REFUSED, HUB_PUSH_FORBIDDEN, HUB_NAMESPACE_NOT_FOUND, HUB_VISIBILITY_DIFFERS or
    HUB_PUSH_REFUSED; SystemFailure HUB_UNREACHABLE; RuntimeError if a file does not have its hash in `sha256`.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(name, file) for name, file in files.items()]
    for operation in operations:
        if operation.upload_info.sha256.hex() != sha256[operation.path_in_repo]:
            raise RuntimeError(f"{operation.path_in_repo} has changed after it was verified")
    on_hashed()
    api = HfApi(token=token)
    failing_since, delay = None, _FIRST_DELAY_SECONDS
    while True:
        reached = _bytes_read(files)
        try:
            # Operations remember what they have done. Without that, the hub tells what it has already: a commit whose
            # answer was lost is not made twice.
            return _push_once(api, target, [copy.copy(operation) for operation in operations])
        except Exception as error:  # noqa: BLE001 - translated
            failure = push_error(error, target)
        now = clock()
        if failing_since is None or _bytes_read(files) > reached:
            failing_since, delay = now, _FIRST_DELAY_SECONDS
        if not isinstance(failure, SystemFailure) or now + delay > failing_since + patience_seconds:
            # Without its cause, whose text has addresses that let others upload.
            raise failure from None
        on_retry(failure.message, delay)
        delay *= 2


def _bytes_read(files: Mapping[str, FileToPush]) -> int:
    return sum(file.furthest for file in files.values())


def _push_once(api: "HfApi", target: PushTarget, operations: list[Any]) -> PushedCommit:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_repo(target.repo_id, private=target.private, exist_ok=True)
    except HfHubHTTPError as error:
        namespace = target.repo_id.partition("/")[0]
        if _status(error) in (403, 404) and not _has_namespace(api, namespace):
            message = f"The hub has neither a user nor an organization {namespace!r}."
            raise _refused("HUB_NAMESPACE_NOT_FOUND", message, "Correct export.hub.repo_id.") from None
        raise
    if bool(api.model_info(target.repo_id).private) != target.private:
        is_, asked = ("public", "private") if target.private else ("private", "public")
        message = f"The repository {target.repo_id} exists and is {is_}, but the push is to be {asked}."
        advice = (
            f"Set export.hub.private = {str(not target.private).lower()}, make it {asked} on the hub, or name another."
        )
        raise _refused("HUB_VISIBILITY_DIFFERS", message, advice, "spec.export.hub.private")
    if target.revision != _MAIN:
        api.create_branch(target.repo_id, branch=target.revision, exist_ok=True)
    api.preupload_lfs_files(target.repo_id, additions=operations, revision=target.revision)
    if ignored := [operation.path_in_repo for operation in operations if operation._should_ignore]:
        message = f"The .gitignore of {target.repo_id} excludes {ignored[0]}, so the hub would leave it out."
        raise _refused("HUB_PUSH_REFUSED", message, "Correct that file of the repository, or name another repository.")
    made = api.create_commit(target.repo_id, operations, commit_message=target.commit_message, revision=target.revision)
    return PushedCommit(made.commit_url, made.oid)


def _has_namespace(api: "HfApi", namespace: str) -> bool:
    """Returns False if the hub says that there is neither such an organization nor such a user."""
    from huggingface_hub.errors import HfHubHTTPError

    for ask in (api.get_organization_overview, api.get_user_overview):
        try:
            ask(namespace)
        except HfHubHTTPError as error:
            if _status(error) == 404:
                continue
        return True
    return False


def push_error(error: Exception, target: PushTarget) -> Exception:
    """Translates an exception of the hub's client; any other is returned unchanged."""
    from huggingface_hub import errors

    status, where = _status(error), target.repo_id
    if status in _TRANSIENT or status >= 500:
        return _unreachable(f"The hub answered the push to {where} with status {status}.")
    if status == 401:
        return _refused(
            "HUB_TOKEN_REFUSED",
            f"The hub refuses the token with which {where} is to be written.{_said(error)}",
            "Set a valid token as the secret that secrets.hub_write_token names, then export again.",
            _USE,
        )
    if status in (403, 404):
        return _refused(
            "HUB_PUSH_FORBIDDEN",
            f"The token may not write to {where} on the hub, or not create it.{_said(error)}",
            "Set a token with write access to it as the secret that secrets.hub_write_token names, or name another "
            "repository; then export again.",
        )
    invalid = isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError)
    if status or invalid:
        said = _said(error) if status else f" It says: {_one_line(str(error))}"
        message = f"The hub does not accept the push to {where}{f' (status {status})' if status else ''}.{said}"
        return _refused("HUB_PUSH_REFUSED", message, "Correct what the hub says, then export again.")
    # HTTPError is that of the hub's own HTTP client. A page that is no JSON is one of a proxy or an overloaded server.
    if isinstance(error, errors.HTTPError | json.JSONDecodeError | ConnectionError):  # type: ignore[attr-defined]
        return _unreachable(f"The hub could not be reached for the push to {where}: {type(error).__name__}.")
    return error


def _status(error: Exception) -> int:
    """Returns the status of the hub's answer; 0 if the error is none."""
    from huggingface_hub.errors import HfHubHTTPError

    response = getattr(error, "response", None)
    return int(response.status_code) if isinstance(error, HfHubHTTPError) and response is not None else 0


def _said(error: Exception) -> str:
    said = getattr(error, "server_message", None)
    return f" It says: {_one_line(said)}" if said else ""


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_QUOTED else f"{line[:_MAX_QUOTED]}…"


def _refused(reason: str, message: str, advice: str, field: str = _REPOSITORY) -> JobError:
    return JobError(reason, message, advice, [Violation(field, message)])


def _unreachable(message: str) -> SystemFailure:
    advice = "The package is stored. Try again later, or download it and upload it yourself."
    return SystemFailure("HUB_UNREACHABLE", message, advice)
