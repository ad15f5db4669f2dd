"""The key of a webhook: `whsec_` and 24 to 64 bytes in Base64, as Standard Webhooks has it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Final

from pydantic import SecretStr

from chassis.errors import InvalidArgument, Violation
from finetuneflow.v1.fine_tuning_job_spec_pb2 import IntegrationSpec
from gateway.secret_store import SecretStore

_PREFIX: Final = "whsec_"
_KEY_BYTES: Final = range(24, 65)


def signing_key(name: str, secret: SecretStr) -> bytes:
    """Returns the key in a secret. Raises ValueError if it has another form than whsec_…"""
    value = secret.get_secret_value()
    try:
        key = base64.b64decode(value.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not value.startswith(_PREFIX) or len(key) not in _KEY_BYTES:
        raise ValueError(f"the secret {name} is no key of a webhook; set it to whsec_ and 24 to 64 bytes in Base64")
    return key


async def check_webhook_keys(secrets: SecretStore, tenant: str, specs: Mapping[str, IntegrationSpec]) -> None:
    """Raises InvalidArgument if the secret of a webhook is no key. `specs`: by path.

    A secret that is missing or that cannot be decrypted is found by others.
    """
    names = {path: spec.webhook.secret for path, spec in specs.items() if spec.HasField("webhook")}
    values = await secrets.use(tenant, set(names.values()))
    found = []
    for path, name in names.items():
        if name in values:
            try:
                signing_key(name, values[name])
            except ValueError as error:
                found.append(Violation(f"{path}.webhook.secret", str(error)))
    if found:
        raise InvalidArgument("INVALID_CONFIG", f"{found[0].field}: {found[0].description}.", found)
