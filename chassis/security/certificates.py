"""A certificate authority of one system, and the certificates of its processes.

    python -m chassis.security.certificates FOLDER nats gateway=gateway.example.org,10.0.0.7 probe trainer

makes FOLDER/ca and a folder FOLDER/<name> for each process, with `cert.pem`, `key.pem` and the authority's `ca.pem`. A
certificate's first name is the name of its process, by which others recognise it; host names and addresses stand behind
"=". Run it again, once a year, to renew: a certificate lasts two years and is replaced in its second one.
"""

from __future__ import annotations

import argparse
import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chassis.security.private_files import write_durably

_AUTHORITY_DAYS: Final = 3650
_CERTIFICATE_DAYS: Final = 730
_RENEWAL_DAYS: Final = 365
# A clock that is behind must not refuse a certificate that was just made.
_CLOCK_SKEW = timedelta(hours=1)


@dataclass(frozen=True)
class CertificateFiles:
    """The files by which a process shows who it is and checks others."""

    certificate: Path
    key: Path
    """Readable by its owner only."""
    authority: Path
    """The authority's certificate."""

    @classmethod
    def in_folder(cls, folder: Path) -> CertificateFiles:
        return cls(folder / "cert.pem", folder / "key.pem", folder / "ca.pem")


class CertificateAuthority:
    """Signs the certificates of one system. `folder` has its key."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def open(cls, folder: Path) -> CertificateAuthority:
        """Reads the authority in `folder`; makes a new one if there is none or if its end is near."""
        files = CertificateFiles.in_folder(folder)
        if files.certificate.exists() and files.key.exists():
            certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
            key = serialization.load_pem_private_key(files.key.read_bytes(), None)
            # A crash between the two files leaves a pair that does not match.
            if (
                isinstance(key, ec.EllipticCurvePrivateKey)
                and key.public_key() == certificate.public_key()
                and _days_left(certificate) > _CERTIFICATE_DAYS
            ):
                return cls(certificate, key)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"FineTuneFlow {secrets.token_hex(4)}")])
        certificate = (
            _builder(_AUTHORITY_DAYS, key)
            .subject_name(name)
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_durably(files.key, _pem_of_key(key), 0o600)
        write_durably(files.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        return cls(certificate, key)

    @property
    def pem(self) -> str:
        """The authority's certificate, which callers need."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, folder: Path, name: str, hosts: Sequence[str] = ()) -> CertificateFiles:
        """Makes the certificate of process `name` in `folder`, unless there is one that will do for a year.

        `hosts` are host names and addresses under which callers reach it.
        """
        files = CertificateFiles.in_folder(folder)
        if self._will_do(files, name, hosts):
            return files
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_CERTIFICATE_DAYS, key)
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.SubjectAlternativeName(_names(name, hosts)), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # The key last: a pair that does not match is replaced by the next call, and a reader keeps its old pair.
        write_durably(files.authority, self._certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        write_durably(files.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        write_durably(files.key, _pem_of_key(key), 0o600)
        return files

    def _will_do(self, files: CertificateFiles, name: str, hosts: Sequence[str]) -> bool:
        try:
            certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
            key = serialization.load_pem_private_key(files.key.read_bytes(), None)
            certificate.verify_directly_issued_by(self._certificate)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return False
        return (
            key.public_key() == certificate.public_key()
            and files.authority.exists()
            and _days_left(certificate) > _RENEWAL_DAYS
            and list(names) == _names(name, hosts)
        )


def _builder(days: int, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
        .public_key(key.public_key())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _names(name: str, hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.DNSName(name)]
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _days_left(certificate: x509.Certificate) -> float:
    return (certificate.not_valid_after_utc - datetime.now(UTC)) / timedelta(days=1)


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the certificates of a system's processes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", metavar="NAME[=HOST,...]")
    given = parser.parse_args()
    authority = CertificateAuthority.open(given.folder / "ca")
    for text in given.names:
        name, _, hosts = text.partition("=")
        authority.issue(given.folder / name, name, [host for host in hosts.split(",") if host])


if __name__ == "__main__":
    main()
