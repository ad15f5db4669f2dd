"""The certificates of a system's processes: who they are for, and when they are replaced."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from chassis.security import certificates
from chassis.security.certificates import CertificateAuthority, CertificateFiles
from chassis.security.identity import Identity, server_credentials


def certificate(files: CertificateFiles) -> x509.Certificate:
    return x509.load_pem_x509_certificate(files.certificate.read_bytes())


def test_certificate_names_its_process_and_hosts(tmp_path: Path) -> None:
    authority = CertificateAuthority.open(tmp_path / "ca")
    files = authority.issue(tmp_path / "gateway", "gateway", ["ftf.example.org", "10.0.0.7", "::1"])
    names = certificate(files).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gateway", "ftf.example.org"]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7", "::1"]
    assert files.key.stat().st_mode & 0o077 == 0
    assert (tmp_path / "ca" / "key.pem").stat().st_mode & 0o077 == 0


def test_certificate_is_kept_while_it_will_do(tmp_path: Path) -> None:
    """A new one at each start would make every client trust again; one that is never replaced would end one day."""
    authority = CertificateAuthority.open(tmp_path / "ca")
    first = certificate(authority.issue(tmp_path / "probe", "probe"))
    again = CertificateAuthority.open(tmp_path / "ca")
    assert again.pem == authority.pem
    assert certificate(again.issue(tmp_path / "probe", "probe")) == first
    assert certificate(again.issue(tmp_path / "probe", "probe", ["10.0.0.7"])) != first, "other names"


@pytest.mark.parametrize("damage", ["key", "certificate", "authority", "end"])
def test_certificate_that_will_not_do_is_replaced(tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted renewal, a restored backup, the end of its time: the next start mends it."""
    authority = CertificateAuthority.open(tmp_path / "ca")
    if damage == "end":
        monkeypatch.setattr(certificates, "_CERTIFICATE_DAYS", 300)
    files = authority.issue(tmp_path / "probe", "probe")
    first = certificate(files)
    if damage == "key":
        files.key.write_text("junk")
    elif damage == "certificate":
        files.certificate.unlink()
    elif damage == "authority":
        authority = CertificateAuthority.open(tmp_path / "another")
    else:
        monkeypatch.setattr(certificates, "_CERTIFICATE_DAYS", 730)
    second = certificate(authority.issue(tmp_path / "probe", "probe"))
    assert second != first
    assert second.not_valid_after_utc - datetime.now(UTC) > timedelta(days=700)
    server_credentials(files.certificate, files.key, files.authority)


def test_pair_that_does_not_belong_together_is_refused_at_the_start(tmp_path: Path) -> None:
    """grpc would start and refuse every connection without a word."""
    authority = CertificateAuthority.open(tmp_path / "ca")
    one, two = (authority.issue(tmp_path / name, name) for name in ("one", "two"))
    with pytest.raises(ValueError, match="not a certificate and its key"):
        server_credentials(one.certificate, two.key)


def test_command_makes_a_folder_for_each_process(tmp_path: Path) -> None:
    names = ["nats=nats.example.org", "gateway=,localhost,", "probe"]
    for _ in range(2):
        subprocess.run([sys.executable, "-m", "chassis.security.certificates", str(tmp_path), *names], check=True)
    for name in ("nats", "gateway", "probe"):
        files = CertificateFiles.in_folder(tmp_path / name)
        certificate(files).verify_directly_issued_by(
            x509.load_pem_x509_certificate((tmp_path / "ca" / "cert.pem").read_bytes())
        )
        Identity(files).channel_credentials()
