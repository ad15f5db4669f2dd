"""Sealing of secrets to one process, one claim and one name."""

import pytest
from pydantic import SecretStr

from chassis.security.sealing import SealingKey, seal

VALUE = "hf_CanaryOfTheSeal"


def test_only_the_process_that_claimed_opens_it() -> None:
    key = SealingKey()
    sealed = {"hub": seal(SecretStr(VALUE), key.public_bytes, "claim", "hub")}
    assert VALUE.encode() not in sealed["hub"]
    assert key.open(sealed, "claim")["hub"].get_secret_value() == VALUE
    assert SealingKey().open(sealed, "claim") == {}


def test_it_opens_for_its_claim_and_name_only(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever can change messages on the broker must not exchange one job's secret for another's."""
    key = SealingKey()
    ciphertext = seal(SecretStr(VALUE), key.public_bytes, "claim", "hub")
    assert key.open({"hub": ciphertext}, "another") == {}
    assert key.open({"other": ciphertext}, "claim") == {}
    assert key.open({"hub": ciphertext[:-1] + b"\0"}, "claim") == {}
    assert key.open({"hub": b"short"}, "claim") == {}
    assert "was not sealed for this process" in caplog.text and VALUE not in caplog.text


@pytest.mark.parametrize("public_key", [b"", b"short", b"\0" * 31])
def test_what_is_no_key_is_refused(public_key: bytes) -> None:
    with pytest.raises(ValueError):
        seal(SecretStr(VALUE), public_key, "claim", "hub")


def test_a_low_order_key_is_refused() -> None:
    """It would make the shared secret one that everybody knows."""
    with pytest.raises(ValueError):
        seal(SecretStr(VALUE), b"\0" * 32, "claim", "hub")
