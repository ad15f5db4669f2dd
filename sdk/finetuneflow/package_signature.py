"""The signature of a package: `manifest.sig`, which the exporter writes and `ftf verify` checks.

The operator's key signs a statement: this public key is the one of the export of this job and step. That key signs the
bytes of manifest.json, which has the SHA-256 of every other file. All keys are Ed25519; bytes are base64 in JSON.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE: Final = "manifest.sig"
_PURPOSE: Final = "finetuneflow export key 1"
"""Part of what is signed, so that no other signature of the operator's key can be taken for this one."""


class BadSignature(Exception):
    """The signature of a package is not one of the given keys; the message says why."""


@dataclass(frozen=True)
class Statement:
    """Statement that the operator's key signs."""

    public_key: str
    """The key of the export, base64."""
    job_id: str
    """The fine-tuning job; for a base model the export, whose id no job has."""
    step: int
    """Step of the checkpoint that is packed; 0 for a base model."""
    purpose: str = _PURPOSE

    def canonical(self) -> bytes:
        """Returns the bytes that are signed: JSON in ASCII with sorted keys and without whitespace."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode("ascii")

    @classmethod
    def of(cls, values: Any) -> Statement:
        """Reads a statement. Raises BadSignature."""
        if isinstance(values, Mapping) and values.keys() == {"public_key", "job_id", "step", "purpose"}:
            texts = (values["public_key"], values["job_id"], values["purpose"])
            if all(isinstance(text, str) for text in texts) and type(values["step"]) is int:
                return cls(**values)
        raise BadSignature(f"{SIGNATURE} has no statement in the form of this version")


def encoded(data: bytes) -> str:
    """Returns bytes as `manifest.sig` has them."""
    return base64.b64encode(data).decode("ascii")


def fingerprint(public_key: bytes) -> str:
    """Returns the fingerprint of the 32 bytes of a public key: the SHA-256 of its DER form, in hexadecimal.

    `openssl pkey -pubin -in KEY -outform der | sha256sum` prints the same.
    """
    # The fixed beginning of every Ed25519 key in DER (RFC 8410).
    return hashlib.sha256(bytes.fromhex("302a300506032b6570032100") + public_key).hexdigest()


def read_keys(files: Sequence[Path]) -> dict[str, Ed25519PublicKey]:
    """Reads public keys in PEM, by their fingerprints. Raises ValueError, and OSError if a file cannot be read."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    keys = {}
    for file in files:
        data = file.read_bytes()
        try:
            key = load_pem_public_key(data)
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            private = " It is a private key: keep it secret, and give its public key." * (b"PRIVATE KEY" in data)
            raise ValueError(f"{file} has no public Ed25519 key in PEM.{private}")
        keys[fingerprint(key.public_bytes_raw())] = key
    return keys


def signed_by(signature: bytes) -> str:
    """Returns the fingerprint of the operator's key that a `manifest.sig` names: a claim, which `check` proves."""
    return str(_fields(signature)["operator_key"])


def check(signature: bytes, manifest: bytes, keys: Mapping[str, Ed25519PublicKey]) -> Statement:
    """Returns the statement of `manifest.sig` if one of the keys certifies the key that signed the manifest.

    Raises BadSignature.
    """
    from cryptography.exceptions import InvalidSignature

    fields = _fields(signature)
    statement = Statement.of(fields["statement"])
    operator = keys.get(str(fields["operator_key"]))
    if operator is None:
        raise BadSignature(f"it is signed with another key, whose fingerprint is {str(fields['operator_key'])[:64]}")
    if statement.purpose != _PURPOSE:
        raise BadSignature(f"its statement is for another purpose: {statement.purpose[:80]!r}")
    try:
        operator.verify(_decoded(fields["operator_signature"]), statement.canonical())
    except InvalidSignature:
        raise BadSignature("the operator's key has not signed its statement") from None
    check_manifest(signature, manifest)
    return statement


def check_manifest(signature: bytes, manifest: bytes) -> None:
    """Raises BadSignature unless the manifest was signed with the key in `manifest.sig`, whoever made that."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    fields = _fields(signature)
    try:
        key = Ed25519PublicKey.from_public_bytes(_decoded(Statement.of(fields["statement"]).public_key))
        key.verify(_decoded(fields["manifest_signature"]), manifest)
    except (InvalidSignature, ValueError):
        raise BadSignature("the key of the export has not signed this manifest.json") from None


def _fields(signature: bytes) -> Mapping[str, Any]:
    names = {"version", "statement", "operator_signature", "manifest_signature", "operator_key"}
    try:
        fields = json.loads(signature)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or fields.keys() != names or fields["version"] != 1:
        raise BadSignature(f"{SIGNATURE} cannot be read: it is not in the form of this version")
    return fields


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise BadSignature(f"{SIGNATURE} has bytes that are not base64") from None
