"""The operator's signing key, and keys that are derived from it for one purpose each.

The operator's key certifies a derived key and never leaves the process that reads its file: what is handed to a child
can sign for its own purpose only.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from chassis.security.private_files import write_durably


def public_key_file(key_file: Path) -> Path:
    """Returns the file beside a signing key that has its public key."""
    return key_file.with_name(f"{key_file.stem}.pub{key_file.suffix}")


def make_signing_key(file: Path) -> None:
    """Writes a new Ed25519 key to `file`, readable by its owner only, unless there is one; its public key beside it.

    Raises ValueError if the file has something else.
    """
    if not file.exists():
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_durably(file, pem, 0o600)
    write_durably(public_key_file(file), SigningKey.read(file).public_pem, 0o644)


class SigningKey:
    """An Ed25519 key that signs, and from which others are derived."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def read(cls, file: Path) -> SigningKey:
        """Reads a PEM file. Raises ValueError, which says what to change, if it is no unencrypted Ed25519 key."""
        try:
            key = serialization.load_pem_private_key(file.read_bytes(), None)
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            make = f"openssl genpkey -algorithm ed25519 -out {file}"
            raise ValueError(f"{file} has no private Ed25519 key in PEM without a password; make one: {make}")
        return cls(key)

    @classmethod
    def of_bytes(cls, private: bytes) -> SigningKey:
        """Returns the key with these 32 bytes, as `derived` returns them."""
        return cls(Ed25519PrivateKey.from_private_bytes(private))

    @property
    def public_pem(self) -> bytes:
        """The public key, which verifiers need."""
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def public_bytes(self) -> bytes:
        """The 32 bytes of the public key."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        """Returns the signature, which is the same each time."""
        return self._key.sign(data)

    def derived(self, *purpose: str) -> bytes:
        """Returns the 32 bytes of a private Ed25519 key for one purpose: the same each time, and independent of those
        of every other purpose."""
        info = b"".join(len(part).to_bytes(4, "big") + part for part in (each.encode() for each in purpose))
        return HKDF(hashes.SHA256(), 32, salt=None, info=info).derive(self._key.private_bytes_raw())
