"""Files and folders that jobs produced."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetuneflow.resources.convert import Resource


@dataclass(frozen=True, kw_only=True)
class Artifact(Resource):
    """A file or folder in the artifact store that belongs to a job."""

    id: str
    """`ar_` followed by 26 characters."""
    job_id: str
    """Id of the job that the artifact belongs to."""
    name: str
    """Name within the job, such as `export/report.md`."""
    kind: str
    """One of `shards`, `validation_report`, `export_package`, `export_file`, `tensorboard`, `wandb`."""
    sha256: str
    """SHA-256 of the file, or of the folder's manifest, in hexadecimal."""
    size_bytes: int
    """Size in bytes; for a folder, the sum over its files."""
    media_type: str
    """IANA media type; `inode/directory` for a folder."""
    create_time: datetime | None
    """Time at which the gateway accepted the artifact."""

    @property
    def is_folder(self) -> bool:
        """True for a folder, which cannot be downloaded as one file."""
        return self.media_type == "inode/directory"
