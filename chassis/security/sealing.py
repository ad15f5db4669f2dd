"""Sealing of secrets to the process that claimed an attempt: HPKE (RFC 9180) to a key that exists in memory only."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from pydantic import SecretStr

_log = logging.getLogger(__name__)

_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


def seal(value: SecretStr, public_key: bytes, claim_id: str, name: str) -> bytes:
    """Returns a ciphertext that only the holder of the private key opens, and only for this claim and name.

    Raises ValueError if `public_key` is no X25519 key.
    """
    key = X25519PublicKey.from_public_bytes(public_key)
    return _SUITE.encrypt(value.get_secret_value().encode(), key, info=_info(claim_id, name))


class SealingKey:
    """The key of a process. It ends with the process, so that what was sealed to it can never be opened again."""

    def __init__(self) -> None:
        self._key = X25519PrivateKey.generate()

    @property
    def public_bytes(self) -> bytes:
        """The public key, for a claim."""
        return self._key.public_key().public_bytes_raw()

    def open(self, sealed: Mapping[str, bytes], claim_id: str) -> dict[str, SecretStr]:
        """Returns the values by name. One that was not sealed to this key, claim and name is missing; the log says
        so."""
        values = {}
        for name, ciphertext in sealed.items():
            try:
                plain = _SUITE.decrypt(ciphertext, self._key, info=_info(claim_id, name))
                values[name] = SecretStr(plain.decode())
            except (InvalidTag, ValueError):
                # The exceptions say nothing more, and their text could contain parts of the value.
                _log.error("the secret %s of claim %s was not sealed for this process", name, claim_id)
        return values


def _info(claim_id: str, name: str) -> bytes:
    return f"finetuneflow secret\0{claim_id}\0{name}".encode()
