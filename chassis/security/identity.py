"""The identity of a process towards the others: credentials of its connections, made from its certificate's files."""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc

from chassis.security.certificates import CertificateFiles

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """Certificate, key and authority of a process. Files that are renewed take effect with the next connection."""

    files: CertificateFiles

    def server_credentials(self) -> grpc.ServerCredentials:
        """Returns credentials of a server that only processes of this system can connect to."""
        return server_credentials(self.files.certificate, self.files.key, self.files.authority)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Returns credentials of a connection to another process of the system."""
        return grpc.ssl_channel_credentials(
            self.files.authority.read_bytes(), self.files.key.read_bytes(), self.files.certificate.read_bytes()
        )

    def client_context(self) -> ssl.SSLContext:
        """Returns the TLS context of a connection to the broker, which knows its users by their passwords."""
        return ssl.create_default_context(cafile=str(self.files.authority))


def server_credentials(certificate: Path, key: Path, client_authority: Path | None = None) -> grpc.ServerCredentials:
    """Returns credentials that read the files again when they have changed. With `client_authority`, clients must show
    a certificate of it.

    Raises OSError for a file that cannot be read, and ValueError for a pair that does not belong together.
    """
    pair = _Pair(certificate, key, client_authority)
    return grpc.dynamic_ssl_server_credentials(
        pair.configuration(),
        # The stubs leave out that None means "unchanged".
        pair.changed,  # type: ignore[arg-type]
        require_client_authentication=client_authority is not None,
    )


class _Pair:
    """A certificate and its key on disk."""

    def __init__(self, certificate: Path, key: Path, client_authority: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_authority = client_authority
        self._read = self._versions()
        self._lock = threading.Lock()

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """Returns grpc's configuration of the files as they are."""
        certificate, key = self._certificate.read_bytes(), self._key.read_bytes()
        authority = self._client_authority.read_bytes() if self._client_authority else None
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key)
        except ssl.SSLError as error:
            raise ValueError(
                f"{self._certificate} and {self._key} are not a certificate and its key: {error}"
            ) from None
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=authority)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by grpc for each new connection. Returns the new configuration if the files have changed."""
        with self._lock:
            versions = self._versions()
            if versions == self._read:
                return None
            # Also if the files are broken: anybody who connects would otherwise add a line to the log.
            self._read = versions
            try:
                configuration = self.configuration()
            except (OSError, ValueError) as error:
                _log.error("the renewed certificate cannot be used; the old one stays: %s", error)
                return None
            _log.info("the certificate %s was renewed", self._certificate)
            return configuration

    def _versions(self) -> list[tuple[int, int] | None]:
        paths = [self._certificate, self._key, *([self._client_authority] if self._client_authority else [])]
        return [_version(path) for path in paths]


def _version(path: Path) -> tuple[int, int] | None:
    """Returns what changes with a file's content; None if the file is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino
