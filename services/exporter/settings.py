"""Settings of an exporter process: `FTF_EXPORTER_<KEY>`, or else `FTF_<KEY>`."""

from pathlib import Path
from typing import ClassVar

from pydantic import field_validator

from chassis.security.signing import SigningKey
from services.settings import ServiceSettings


class ExporterSettings(ServiceSettings):
    """The settings of every service, and those of the exporter."""

    service: ClassVar[str] = "exporter"

    listen: str = "127.0.0.1:7464"
    signing_key_file: Path | None = None
    """PEM file with the operator's private Ed25519 key, which certifies the key that signs a package. It stays in this
    process; a child gets a key for its own export only. Default: packages are not signed, and say so."""

    libllama: Path | None = None
    """Folder with llama.cpp's library of the release that `services/exporter/quantizer.py` names, which makes the types
    of GGUF files that llama.cpp's converter does not. It is checked at the start. None: these types are not made."""

    @field_validator("signing_key_file", mode="before")
    @classmethod
    def _unset(cls, file: object) -> object:
        # docker-compose.yml sets it to nothing where there is no key.
        return file or None

    @field_validator("signing_key_file")
    @classmethod
    def _is_key(cls, file: Path | None) -> Path | None:
        if file is not None:
            SigningKey.read(file)
        return file

    @property
    def signing_key(self) -> SigningKey | None:
        """The operator's key; None if there is none."""
        return None if self.signing_key_file is None else SigningKey.read(self.signing_key_file)
