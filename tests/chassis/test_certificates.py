"""Certificates of a system: who keeps one, when it is renewed, and that nobody else reads a key."""

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509

from chassis.security import certificates
from chassis.security.certificates import CertificateAuthority, CertificateFiles


def certificate(files: CertificateFiles) -> x509.Certificate:
    return x509.load_pem_x509_certificate(files.certificate.read_bytes())


def test_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    """Whoever reads the authority's key can become any process."""
    CertificateAuthority.open(tmp_path / "ca").issue(tmp_path / "probe", "probe")
    for folder in ("ca", "probe"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o700
        assert (tmp_path / folder / "key.pem").stat().st_mode & 0o777 == 0o600
        assert not [*(tmp_path / folder).glob(".*")], "a temporary file was left"


def test_certificate_names_its_process_and_its_hosts(tmp_path: Path) -> None:
    files = CertificateAuthority.open(tmp_path / "ca").issue(
        tmp_path / "g", "gateway", ["example.org", "10.0.0.7", "::1"]
    )
    names = certificate(files).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["gateway", "example.org"]
    assert [*map(str, names.get_values_for_type(x509.IPAddress))] == ["10.0.0.7", "::1"]


def test_certificate_is_kept_until_names_change_or_its_end_is_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start would otherwise make new ones; a system that keeps an old one stops a year later."""

    def issue(*hosts: str) -> int:
        authority = CertificateAuthority.open(tmp_path / "ca")
        return certificate(authority.issue(tmp_path / "gateway", "gateway", hosts)).serial_number

    first = issue("a.example.org")
    assert issue("a.example.org") == first
    other = issue("b.example.org")
    assert other != first
    monkeypatch.setattr(certificates, "_RENEWAL_DAYS", 731)
    assert issue("b.example.org") != other


@pytest.mark.parametrize("damaged", ["cert.pem", "key.pem", "ca.pem"])
def test_damaged_or_missing_file_is_replaced(tmp_path: Path, damaged: str) -> None:
    """A start after a crash or a full disk repairs them without manual cleanup."""
    authority = CertificateAuthority.open(tmp_path / "ca")
    authority.issue(tmp_path / "probe", "probe")
    (tmp_path / "probe" / damaged).unlink()
    authority.issue(tmp_path / "probe", "probe")
    assert (tmp_path / "probe" / damaged).exists()


def test_authority_is_kept_and_replaced_a_year_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients hold its certificate: a new one at each start would lock them out."""
    first = CertificateAuthority.open(tmp_path / "ca")
    files = first.issue(tmp_path / "probe", "probe")
    assert CertificateAuthority.open(tmp_path / "ca").pem == first.pem
    monkeypatch.setattr(certificates, "_CERTIFICATE_DAYS", 3651)
    second = CertificateAuthority.open(tmp_path / "ca")
    assert second.pem != first.pem
    assert second.issue(tmp_path / "probe", "probe").authority.read_text() == second.pem
    certificate(files).verify_directly_issued_by(x509.load_pem_x509_certificate(second.pem.encode()))


def test_authority_whose_key_and_certificate_differ_is_replaced(tmp_path: Path) -> None:
    """A crash between the two files would leave an authority whose certificates nobody accepts."""
    CertificateAuthority.open(tmp_path / "ca")
    CertificateAuthority.open(tmp_path / "other")
    (tmp_path / "other" / "key.pem").replace(tmp_path / "ca" / "key.pem")
    authority = CertificateAuthority.open(tmp_path / "ca")
    files = authority.issue(tmp_path / "probe", "probe")
    certificate(files).verify_directly_issued_by(x509.load_pem_x509_certificate(authority.pem.encode()))


def test_command_makes_a_folder_for_each_process(tmp_path: Path) -> None:
    """Sites without cert-manager make their certificates with it."""
    program = [
        sys.executable,
        "-m",
        "chassis.security.certificates",
        tmp_path,
        "nats=nats.internal",
        "probe",
        "gateway=",
    ]
    subprocess.run(program, check=True)
    authority = x509.load_pem_x509_certificate((tmp_path / "ca" / "cert.pem").read_bytes())
    for name, hosts in (("nats", ["nats.internal"]), ("probe", []), ("gateway", [])):
        made = certificate(CertificateFiles.in_folder(tmp_path / name))
        made.verify_directly_issued_by(authority)
        found = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert found.get_values_for_type(x509.DNSName) == [name, *hosts]
