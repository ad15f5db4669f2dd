"""Settings of a push to the hub."""

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from engine.config.section import Section

_PART: Final = r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"
_REPOSITORY: Final = re.compile(f"{_PART}/{_PART}", re.ASCII)
_BRANCH: Final = re.compile(r"[A-Za-z0-9](?:[\w./-]*[\w-])?", re.ASCII)
_OF_OTHER_KINDS: Final = ("datasets/", "spaces/", "models/", "hf://", "http:", "https:")


def _valid_repository(repo_id: str) -> str:
    if repo_id.startswith(_OF_OTHER_KINDS):
        raise ValueError("it must be namespace/name, without a prefix; only repositories of models can be pushed to")
    if not _REPOSITORY.fullmatch(repo_id) or "--" in repo_id or ".." in repo_id or repo_id.endswith(".git"):
        raise ValueError(
            "it must be namespace/name, each of up to 96 letters, digits, '-', '_' and '.', beginning and ending with "
            "a letter or digit, without '--' and '..'"
        )
    return repo_id


def _valid_branch(revision: str) -> str:
    if revision.startswith("refs/"):
        raise ValueError("only branches can be pushed to, not pull requests and other refs")
    if not _BRANCH.fullmatch(revision) or ".." in revision or "//" in revision:
        raise ValueError("it must be the name of a branch: letters, digits, '-', '_', '.' and '/'")
    return revision


class HubPush(Section):
    """A push of the package to a model repository of the hub."""

    repo_id: Annotated[str, AfterValidator(_valid_repository)]
    """`namespace/name`."""
    private: bool = True
    """Visibility of the repository. One that exists with the other visibility is refused."""
    revision: Annotated[str, Field(max_length=250), AfterValidator(_valid_branch)] = "main"
    """Branch that gets the commit; created from main if it does not exist."""
    commit_message: Annotated[str, Field(max_length=200, pattern=r"^[^\r\n]*$")] = ""
    """Empty: names the job and the step."""
