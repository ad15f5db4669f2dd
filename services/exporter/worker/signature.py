"""`manifest.sig`: the signature of the package."""

import base64
import json
from dataclasses import asdict
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from finetuneflow.package_signature import encoded
from services.exporter.worker.child_input import ExportKey


def write_signature(key: ExportKey, manifest: Path, file: Path) -> None:
    """Signs the bytes of the manifest with the key of this export, and adds the operator's certification of it."""
    private = Ed25519PrivateKey.from_private_bytes(base64.b64decode(key.private_key))
    signature = {
        "version": 1,
        "statement": asdict(key.statement),
        "operator_signature": key.operator_signature,
        "manifest_signature": encoded(private.sign(manifest.read_bytes())),
        "operator_key": key.operator_key,
    }
    file.write_text(json.dumps(signature, indent=2) + "\n", "ascii")
