"""Checks the fields of messages that become parts of paths."""

import re
from collections.abc import Sequence
from typing import Final

from engine.errors import Violation
from finetuneflow.v1.dataset_pb2 import Dataset

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_MAX_FILENAME_BYTES: Final = 255
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def tenant_violations(tenant: str, field: str) -> list[Violation]:
    """Returns a violation if a tenant is no name of one folder."""
    if _NAME.fullmatch(tenant):
        return []
    return [Violation(field, f"{_shown(tenant)} is not the name of a tenant.")]


def path_violations(path: str, field: str) -> list[Violation]:
    """Returns a violation if a path does not stay below the tenant's folder of the artifact store."""
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\\" in part or _CONTROL.search(part) for part in parts):
        return [Violation(field, f"{_shown(path)} is not a path below the tenant's folder.")]
    return []


def sha256_violations(sha256: str, field: str) -> list[Violation]:
    """Returns a violation if a hash, which may become the name of a file, is none."""
    if _SHA256.fullmatch(sha256):
        return []
    return [Violation(field, f"{_shown(sha256)} is not a SHA-256 of 64 hexadecimal digits.")]


def dataset_violations(dataset: Dataset, field: str) -> list[Violation]:
    """Returns the violations of an uploaded dataset in a request, whose path in the request is `field`."""
    found = path_violations(dataset.path, f"{field}.path")
    if not _NAME.fullmatch(dataset.id):
        found.append(Violation(f"{field}.id", f"{_shown(dataset.id)} is not the id of a dataset."))
    found += sha256_violations(dataset.sha256, f"{field}.sha256")
    name = dataset.filename
    long = len(name.encode()) > _MAX_FILENAME_BYTES
    if name in ("", ".", "..") or "/" in name or "\\" in name or _CONTROL.search(name) or long:
        found.append(Violation(f"{field}.filename", f"{_shown(name)} is not the name of a file."))
    return found


def described(violations: Sequence[Violation]) -> str:
    """Returns all violations as one sentence each."""
    return " ".join(f"{one.field}: {one.description}" for one in violations)


def _shown(value: str) -> str:
    return repr(value if len(value) <= 80 else f"{value[:77]}...")
