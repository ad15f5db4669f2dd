"""References to datasets on the hub: `hf://owner/name[@revision][/path/of/file]`."""

import re
from dataclasses import dataclass, replace
from typing import Final, Self

SCHEME: Final = "hf://"
_MAX_CHARACTERS: Final = 1024
_REFERENCE = re.compile(
    r"hf://(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    # Revisions with slashes are limited to those that the hub creates; others could not be told from a path.
    r"(?:@(?P<revision>refs/(?:convert|pr)/[\w.-]+|\w[\w.-]*))?"
    r"(?:/(?P<path>[^/\x00-\x1f\\]+(?:/[^/\x00-\x1f\\]+)*))?",
    re.ASCII,
)


@dataclass(frozen=True)
class HubReference:
    """A dataset on the hub, or one file of it."""

    id: str
    """`owner/name`."""
    revision: str = ""
    """Branch, tag or commit; empty: the main branch."""
    path: str = ""
    """Path of a file or folder in the dataset; empty: its files with rows."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses a reference. Raises ValueError with the expected form."""
        match = _REFERENCE.fullmatch(text)
        above = match is not None and {".", ".."} & set((match["path"] or "").split("/"))
        if match is None or above or len(text) > _MAX_CHARACTERS:
            raise ValueError(
                "a dataset on the hub is written as hf://owner/name or hf://owner/name@revision, optionally followed "
                f"by /path/of/file or /folder, without a slash at the end, in at most {_MAX_CHARACTERS:,} characters"
            )
        return cls(match["id"], match["revision"] or "", match["path"] or "")

    def pinned(self, commit: str, path: str) -> Self:
        """Returns the reference to one file at one commit, whose content never changes."""
        return replace(self, revision=commit, path=path)

    @property
    def folder(self) -> str:
        """The reference to the folder of the file; empty if that is the whole dataset."""
        above = self.path.rpartition("/")[0]
        return str(replace(self, path=above)) if above else ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        path = f"/{self.path}" if self.path else ""
        return f"{SCHEME}{self.id}{revision}{path}"


def is_hub_reference(dataset: str) -> bool:
    """Returns True if `dataset` starts with `hf://`."""
    return dataset.startswith(SCHEME)
