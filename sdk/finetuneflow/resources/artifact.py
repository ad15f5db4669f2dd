"""Files and folders that jobs made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetuneflow.resources.convert import Resource


@dataclass(frozen=True, kw_only=True)
class Artifact(Resource):
    """A file or folder of a job. `sha256` is the file's, or that of the folder's manifest."""

    id: str
    job_id: str
    name: str
    kind: str
    sha256: str
    size_bytes: int
    media_type: str
    create_time: datetime | None

    @property
    def is_folder(self) -> bool:
        return self.media_type == "inode/directory"
