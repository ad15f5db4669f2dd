"""Datasets of a hub, as a spec names them: `hf://owner/name[@revision][/path/of/file]`."""

import re
from dataclasses import dataclass, replace
from typing import Final, Self

SCHEME: Final = "hf://"
_MAX_CHARACTERS: Final = 1024
_REFERENCE = re.compile(
    r"hf://(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    # Of names with slashes only those that the hub makes: else a revision and a path could not be told apart.
    r"(?:@(?P<revision>refs/(?:convert|pr)/[\w.-]+|\w[\w.-]*))?"
    r"(?:/(?P<path>[^/\x00-\x1f\\]+(?:/[^/\x00-\x1f\\]+)*))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubReference:
    """One dataset of a hub, and perhaps one file of it."""

    id: str
    """owner/name"""
    revision: str = ""
    """A branch, tag or commit; empty: the dataset's main branch."""
    path: str = ""
    """Of the file; empty: the only one with rows."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError, which says how one is written."""
        match = _REFERENCE.fullmatch(text)
        above = match is not None and {".", ".."} & set((match["path"] or "").split("/"))
        if match is None or above or len(text) > _MAX_CHARACTERS:
            raise ValueError(
                "a dataset of the hub is named hf://owner/name or hf://owner/name@revision, "
                f"perhaps with /path/of/file behind it, in at most {_MAX_CHARACTERS:,} characters"
            )
        return cls(match["id"], match["revision"] or "", match["path"] or "")

    def pinned(self, commit: str, path: str) -> Self:
        """The same bytes for ever."""
        return replace(self, revision=commit, path=path)

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        path = f"/{self.path}" if self.path else ""
        return f"{SCHEME}{self.id}{revision}{path}"


def is_hub_reference(dataset: str) -> bool:
    """Whether it is meant to name a dataset of the hub."""
    return dataset.startswith(SCHEME)
