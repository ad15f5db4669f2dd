"""Packages prove who made them: the signature of the exporter, and what `ftf verify` finds."""

import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from chassis.security.signing import SigningKey, make_signing_key, public_key_file
from finetuneflow.cli.app import build_app
from finetuneflow.package_check import Fault, Signature, check_package
from finetuneflow.package_signature import SIGNATURE, encoded, fingerprint, read_keys
from services.exporter.settings import ExporterSettings
from services.exporter.signing import export_key
from services.exporter.worker.__main__ import main
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.signature import write_signature
from tests.services.exporter.test_package import FILES, RecordingSink

Ftf = Callable[..., Result]


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "signing-key.pem"
    make_signing_key(file)
    return file


@pytest.fixture
def signed(export_input: ExportInput, key_file: Path, tmp_path: Path) -> Path:
    """The folder of an export, which each test may change."""
    key = export_key(SigningKey.read(key_file), export_input.job.id, export_input.training.best_step)
    changed = export_input.model_copy(update={"signing": key})
    (tmp_path / "input.json").write_text(changed.model_dump_json())
    kept = key_file.with_name("export")
    if not kept.exists():
        result = main(RecordingSink(), tmp_path / "input.json")
        assert result.signing_key_fingerprint == key.operator_key
        shutil.copytree(export_input.out_dir, kept)
    shutil.copytree(kept, export_input.out_dir, dirs_exist_ok=True)
    return export_input.out_dir


@pytest.fixture
def ftf() -> Ftf:
    return lambda *arguments: CliRunner().invoke(build_app(), [str(argument) for argument in arguments])


def test_signed_package_is_authentic_and_the_same_each_time(
    signed: Path, export_input: ExportInput, key_file: Path, tmp_path: Path, ftf: Ftf
) -> None:
    """Whoever serves a model has to know that it is the one that was trained."""
    package, public = signed / "finetuneflow_export.zip", public_key_file(key_file)
    first = package.read_bytes()
    (tmp_path / "input.json").write_text(
        (tmp_path / "input.json").read_text().replace(str(export_input.out_dir), str(tmp_path / "again"))
    )
    main(RecordingSink(), tmp_path / "input.json")
    assert (tmp_path / "again" / "finetuneflow_export.zip").read_bytes() == first
    with zipfile.ZipFile(package) as archive:
        assert set(archive.namelist()) == FILES | {SIGNATURE}
        archive.extractall(tmp_path / "unpacked")
    for form in (package, signed, tmp_path / "unpacked"):
        found = check_package(form, read_keys([public]))
        assert found.passed and found.signature is Signature.VALID and not found.differences
        assert (found.job_id, found.num_files) == ("ftjob_1", len(FILES) - 1)
    result = ftf("verify", package, "--key", public)
    assert result.exit_code == 0 and "Signed by the key" in result.stdout
    result = ftf("verify", package)
    assert result.exit_code == 0 and "was not checked" in result.stdout
    assert found.operator_key in (signed / "README.md").read_text()


def test_only_a_given_key_makes_a_package_authentic(signed: Path, key_file: Path, tmp_path: Path, ftf: Ftf) -> None:
    """While an operator replaces a key, packages of both are in use."""
    make_signing_key(tmp_path / "other.pem")
    other = public_key_file(tmp_path / "other.pem")
    result = ftf("verify", signed, "--key", other, "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["signature"] == "invalid"
    assert ftf("verify", signed, "--key", other, "--key", public_key_file(key_file)).exit_code == 0
    refused = ftf("verify", signed, "--key", key_file)
    assert refused.exit_code == 2 and "keep it secret" in " ".join(refused.output.split())


def test_unsigned_package_is_checked_by_its_hashes_only(export_input: ExportInput, input_file: Path, ftf: Ftf) -> None:
    result = main(RecordingSink(), input_file)
    assert result.signing_key_fingerprint == ""
    assert "Signature: none" in (export_input.out_dir / "report.md").read_text()
    found = ftf("verify", export_input.out_dir)
    assert found.exit_code == 0 and "it is not signed" in found.stdout


def test_every_change_is_named(signed: Path, key_file: Path, ftf: Ftf) -> None:
    """A message without the file would leave the reader to compare two packages by hand."""
    (signed / "finetuneflow_export.zip").unlink()
    weights = signed / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    (signed / "report.md").unlink()
    (signed / "added.py").write_text("")
    (signed / "metrics.json").unlink()
    (signed / "metrics.json").symlink_to("/etc/passwd")
    found = check_package(signed, read_keys([public_key_file(key_file)]))
    assert {(each.path, each.fault) for each in found.differences} == {
        ("adapter_model.safetensors", Fault.CHANGED),
        ("report.md", Fault.MISSING),
        ("added.py", Fault.ADDED),
        ("metrics.json", Fault.UNSAFE_PATH),
    }
    result = ftf("verify", signed)
    assert result.exit_code == 1
    assert all(each.path in result.stdout for each in found.differences)


def test_zip_that_readers_see_differently_is_refused(signed: Path, tmp_path: Path) -> None:
    """Of two entries of one name, some programs unpack the first one, others the last."""
    package = tmp_path / "changed.zip"
    shutil.copyfile(signed / "finetuneflow_export.zip", package)
    with warnings.catch_warnings(), zipfile.ZipFile(package, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("report.md", "another")
        archive.writestr("../escaped.md", "")
        archive.writestr("C:\\absolute.md", "")
    found = {each.path: each.fault for each in check_package(package).differences}
    # zipfile writes a slash for a backslash on some systems.
    assert found.pop("report.md") is Fault.DUPLICATE
    assert set(found.values()) == {Fault.UNSAFE_PATH} and len(found) == 2
    (tmp_path / "no.zip").write_bytes(b"PK\3\4 nothing else")
    assert check_package(tmp_path / "no.zip").differences[0].fault is Fault.UNREADABLE


def test_manifest_that_was_written_again_is_not_authentic(signed: Path, key_file: Path) -> None:
    """Who changes a file can change its hash, too."""
    manifest = json.loads((signed / "manifest.json").read_text())
    (signed / "finetuneflow_export.zip").unlink()
    manifest["files"] = [entry for entry in manifest["files"] if entry["path"] != "report.md"]
    (signed / "report.md").unlink()
    (signed / "manifest.json").write_text(json.dumps(manifest))
    keys = read_keys([public_key_file(key_file)])
    for given in (None, keys):
        found = check_package(signed, given)
        assert not found.passed and "has not signed this manifest.json" in found.signature_message
    (signed / SIGNATURE).unlink()
    assert check_package(signed).passed and not check_package(signed, keys).passed


def test_damaged_signature_is_named_without_a_key(signed: Path, ftf: Ftf) -> None:
    """It was reported as a package that is not signed, with exit code 0."""
    (signed / "finetuneflow_export.zip").unlink()
    (signed / SIGNATURE).write_bytes((signed / SIGNATURE).read_bytes()[:-9])
    result = ftf("verify", signed)
    assert result.exit_code == 1
    assert f"{SIGNATURE} cannot be read" in result.stdout and "not signed" not in result.stdout


def test_key_of_one_export_signs_no_other(signed: Path, key_file: Path, tmp_path: Path) -> None:
    """The child parses what strangers wrote: what it has must be worth nothing for other packages."""
    operator, keys = SigningKey.read(key_file), read_keys([public_key_file(key_file)])
    stolen = export_key(operator, "ftjob_2", 4)
    assert stolen.private_key != export_key(operator, "ftjob_1", 4).private_key
    (signed / "finetuneflow_export.zip").unlink()
    claims = {
        "is for job ftjob_2": stolen,
        "operator's key has not signed": stolen.model_copy(
            update={"statement": replace(stolen.statement, job_id="ftjob_1")}
        ),
        "another key": export_key(SigningKey.of_bytes(operator.derived("x")), "ftjob_1", 4),
    }
    for why, key in claims.items():
        write_signature(key, signed / "manifest.json", signed / SIGNATURE)
        found = check_package(signed, keys)
        assert found.signature is Signature.INVALID and why in found.signature_message
        assert check_package(signed).signature is Signature.NOT_CHECKED
    own = SigningKey.of_bytes(operator.derived("y"))
    forged = replace(stolen.statement, job_id="ftjob_1", public_key=encoded(own.public_bytes))
    # An operator's key that says nothing about the purpose of a statement signs nothing here.
    other = replace(forged, purpose="another")
    (signed / SIGNATURE).write_text(
        json.dumps(
            {
                "version": 1,
                "statement": asdict(other),
                "operator_signature": encoded(operator.sign(other.canonical())),
                "manifest_signature": encoded(own.sign((signed / "manifest.json").read_bytes())),
                "operator_key": fingerprint(operator.public_bytes),
            }
        )
    )
    assert "another purpose" in check_package(signed, keys).signature_message


def test_exporter_does_not_start_without_its_key(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise packages would leave unsigned, and nobody would notice."""
    assert key_file.stat().st_mode & 0o777 == 0o600
    make_signing_key(key_file)
    monkeypatch.setenv("FTF_EXPORTER_SIGNING_KEY_FILE", str(key_file))
    settings = ExporterSettings.of_environment()
    assert settings.signing_key is not None
    assert settings.signing_key.public_pem == public_key_file(key_file).read_bytes()
    monkeypatch.setenv("FTF_EXPORTER_SIGNING_KEY_FILE", str(key_file.with_name("none.pem")))
    with pytest.raises(SystemExit, match="FTF_EXPORTER_SIGNING_KEY_FILE"):
        ExporterSettings.of_environment()
