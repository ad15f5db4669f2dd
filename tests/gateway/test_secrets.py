"""Secrets in the database, their keys, and the claims that they are given to."""

import asyncio
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet, InvalidToken
from pydantic import SecretStr
from sqlalchemy import text

from chassis.errors import NotFound
from chassis.security.sealing import SealingKey
from engine.config.job import job_config
from engine.config.spec_proto import config_to_spec
from finetuneflow.v1.fine_tuning_job_pb2 import Stage
from finetuneflow.v1.work_pb2 import Assignment, ClaimRequest
from gateway.secret_store import SecretKeys, SecretStore
from gateway.sql.database import Database
from gateway.sql.tables import SecretRow
from gateway.work.kinds import queue_of
from gateway.work.ledger import Ledger
from gateway.work.worker_requests import WorkerRequests
from tests.fakes.planning import NoTrainers
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import Worker, attempts_of, create

VALUE = "hf_CanaryOfTheDatabase"


@pytest.fixture
def keys(tmp_path: Path) -> SecretKeys:
    return SecretKeys(tmp_path / "home" / "secrets.key", SecretStr(""))


@pytest.fixture
def store(database: Database, keys: SecretKeys) -> SecretStore:
    return SecretStore(database, keys)


async def value_of(store: SecretStore, name: str, tenant: str = "default") -> str | None:
    found = (await store.use(tenant, [name])).get(name)
    return found.get_secret_value() if found else None


async def row_of(database: Database, name: str) -> SecretRow:
    async with database.read() as session:
        return await session.get_one(SecretRow, ("default", name))


async def test_database_holds_no_value(store: SecretStore, database: Database) -> None:
    """Whoever gets a backup of the database must not get the tokens of all callers."""
    await store.set("default", "hub", VALUE)
    async with database.read() as session:
        rows = (await session.exec(text("SELECT * FROM secrets"))).all()
    assert VALUE not in str(rows) and VALUE.encode() not in rows[0].ciphertext
    assert await value_of(store, "hub") == VALUE


async def test_replacing_a_secret_keeps_when_it_was_created(store: SecretStore, database: Database) -> None:
    await store.set("default", "hub", "old")
    before = await row_of(database, "hub")
    assert before.last_use_time is None
    await store.set("default", "hub", VALUE)
    assert await value_of(store, "hub") == VALUE
    after = await row_of(database, "hub")
    assert after.create_time == before.create_time <= before.update_time <= after.update_time
    assert after.last_use_time is not None


async def test_deleted_secret_is_gone(store: SecretStore) -> None:
    await store.set("default", "hub", VALUE)
    await store.delete("default", "hub")
    assert await value_of(store, "hub") is None
    with pytest.raises(NotFound, match="no secret 'hub'"):
        await store.delete("default", "hub")


async def test_secrets_of_a_lost_key_are_counted_at_the_start(
    store: SecretStore, keys: SecretKeys, database: Database
) -> None:
    """The first job that names one would otherwise be the first to notice, hours after a restore."""
    await store.set("default", "hub", VALUE)
    assert await store.count_closed() == 0
    kept = keys.file.read_text()
    keys.file.unlink()
    assert await store.count_closed() == 1
    keys.file.write_text(kept)
    assert await store.count_closed() == 0


async def test_ciphertext_that_is_moved_to_another_name_opens_nothing(store: SecretStore, database: Database) -> None:
    """Whoever can write to the database must not give himself another's token by copying it to a row of his own."""
    await store.set("default", "hub", VALUE)
    await store.set("default", "mine", "mine")
    async with database.write() as session:
        await session.exec(text("UPDATE secrets SET ciphertext = (SELECT ciphertext FROM secrets WHERE name = 'hub')"))
    assert await value_of(store, "mine") is None
    assert await value_of(store, "hub") == VALUE


async def test_rotation_leaves_nothing_that_the_old_key_opens(
    store: SecretStore, keys: SecretKeys, database: Database
) -> None:
    """It is what an operator does when a key was seen by others. Gateways run meanwhile."""
    await store.set("default", "hub", VALUE)
    (old,) = keys.file.read_text().split()
    keys.add()
    assert await value_of(store, "hub") == VALUE, "the old key still opens what is not encrypted again yet"
    await store.set("default", "other", VALUE)
    assert await store.rotate() == 2
    for name in ("hub", "other"):
        with pytest.raises(InvalidToken):
            Fernet(old).decrypt((await row_of(database, name)).ciphertext)
        assert await value_of(store, name) == VALUE
    keys.file.write_text(keys.file.read_text().replace(old, ""))
    assert await value_of(store, "hub") == VALUE


async def test_a_lost_key_leaves_the_secret_out_and_is_logged(
    store: SecretStore, keys: SecretKeys, caplog: pytest.LogCaptureFixture
) -> None:
    await store.set("default", "hub", VALUE)
    keys.file.unlink()
    assert await value_of(store, "hub") is None
    assert "no key decrypts the secret hub" in caplog.text and VALUE not in caplog.text


def test_key_file_is_for_its_owner_only(keys: SecretKeys) -> None:
    keys.fernet()
    assert stat.S_IMODE(keys.file.stat().st_mode) == 0o600
    assert [file.name for file in keys.file.parent.iterdir()] == ["secrets.key"]
    keys.file.chmod(0o640)
    with pytest.raises(ValueError, match="can be read by other users; run: chmod 600"):
        keys.fernet()


async def test_processes_that_start_together_make_one_key(keys: SecretKeys) -> None:
    """A secret that was encrypted with the key of the loser could never be decrypted."""
    made = await asyncio.gather(*(asyncio.to_thread(keys.fernet) for _ in range(8)))
    token = made[0].encrypt(b"x")
    assert all(each.decrypt(token) == b"x" for each in made)


@pytest.mark.parametrize("content", ["", "no key\n", "short=\n"])
def test_file_without_keys_is_refused(keys: SecretKeys, content: str) -> None:
    keys.file.parent.mkdir()
    keys.file.write_text(content)
    keys.file.chmod(0o600)
    with pytest.raises(ValueError, match="must hold Fernet keys"):
        keys.fernet()


async def test_keys_of_the_environment_replace_the_file(database: Database, keys: SecretKeys) -> None:
    first, second = (Fernet.generate_key().decode() for _ in range(2))
    given = SecretKeys(keys.file, SecretStr(f"{first},{second}"))
    await SecretStore(database, given).set("default", "hub", VALUE)
    Fernet(first).decrypt((await row_of(database, "hub")).ciphertext)
    assert not keys.file.exists()
    assert first not in repr(given)
    with pytest.raises(ValueError, match="FTF_GATEWAY_SECRETS_KEYS"):
        given.add()


def test_rotation_command_says_which_key_it_lacks(tmp_path: Path) -> None:
    """The operator runs it by hand, after something has gone wrong."""
    environment = {**os.environ, "FTF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "gateway.secret_store", "rotate"]

    async def store_secret() -> None:
        database = await Database.open(f"sqlite:///{tmp_path / 'gateway.sqlite'}")
        await SecretStore(database, SecretKeys(tmp_path / "secrets.key", SecretStr(""))).set("default", "hub", VALUE)
        await database.close()

    asyncio.run(store_secret())
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and "1 secrets are encrypted with the first key" in done.stdout, done.stderr
    assert len((tmp_path / "secrets.key").read_text().split()) == 2
    another = {**environment, "FTF_GATEWAY_SECRETS_KEYS": Fernet.generate_key().decode()}
    done = subprocess.run(command, env=another, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1 and "add the key that is missing" in done.stderr and "Traceback" not in done.stderr


def spec(base_model: str = "org/model", dataset: str = "ds_1") -> dict[str, bytes]:
    """The columns of a job that names the secret `hub`."""
    values = {"base_model": base_model, "training_data": [{"dataset": dataset}], "secrets": {"hub_token": "hub"}}
    merged = config_to_spec(job_config(values)).SerializeToString()
    return {"spec": merged, "merged_spec": merged}


async def claimed(ledger: Ledger, store: SecretStore, key: SealingKey | None, **columns: bytes) -> Assignment:
    job_id = await create(ledger, **columns)  # type: ignore[arg-type]
    (attempt,) = await attempts_of(ledger, job_id)
    request = ClaimRequest(
        job_id=job_id,
        stage=Stage.Value(attempt.stage),
        attempt=attempt.attempt,
        claim_id="a" * 32,
        node_id="node-1",
        public_key=key.public_bytes if key else b"",
    )
    response = await WorkerRequests(ledger, NoTrainers(), store).claim(request, queue_of(attempt.stage, attempt.pool))
    assert response.HasField("assignment")
    return response.assignment


async def test_claim_gets_the_secret_sealed_to_its_worker(ledger: Ledger, store: SecretStore) -> None:
    """What is on the broker opens nothing: not for another process, nor for another claim."""
    await store.set("default", "hub", VALUE)
    key = SealingKey()
    given = await claimed(ledger, store, key, **spec())
    assert VALUE.encode() not in given.SerializeToString()
    assert list(given.sealed_secrets) == ["hub"]
    assert key.open(given.sealed_secrets, given.claim_id)["hub"].get_secret_value() == VALUE
    assert SealingKey().open(given.sealed_secrets, given.claim_id) == {}
    assert key.open(given.sealed_secrets, "b" * 32) == {}


@pytest.mark.parametrize(
    ("model", "dataset", "needed"),
    [("org/model", "ds_1", True), ("tiny", "hf://org/rows", True), ("tiny", "ds_1", False)],
)
async def test_preflight_gets_a_token_only_if_it_reads_the_hub(
    ledger: Ledger, store: SecretStore, model: str, dataset: str, needed: bool
) -> None:
    """A secret that a stage does not need is a secret too many on that machine."""
    await store.set("default", "hub", VALUE)
    given = await claimed(ledger, store, SealingKey(), **spec(model, dataset))
    assert bool(given.sealed_secrets) is needed


async def test_training_on_a_local_model_gets_no_token(ledger: Ledger, store: SecretStore, recorder: Recorder) -> None:
    """Preflight has read the dataset of the hub; a trainer reads token shards."""
    await store.set("default", "hub", VALUE)
    requests = WorkerRequests(ledger, NoTrainers(), store)
    job_id = await create(ledger, **spec("tiny", "hf://org/rows"))  # type: ignore[arg-type]
    worker = Worker(requests)
    await worker.claim((await attempts_of(ledger, job_id))[-1])
    await worker.complete()
    trainer = Worker(requests, "b" * 32)
    await trainer.claim(recorder.offered[-1])
    assert trainer.assignment.stage == Stage.STAGE_TRAINING
    assert not trainer.assignment.sealed_secrets


async def test_a_claim_gets_no_secret_of_another_tenant(ledger: Ledger, store: SecretStore, database: Database) -> None:
    async with database.write() as session:
        await session.exec(
            text(
                "INSERT INTO tenants (name, display_name, disabled, create_time) VALUES ('acme', '', :no, 0)"
            ).bindparams(no=False)
        )
    await store.set("acme", "hub", VALUE)
    assert not (await claimed(ledger, store, SealingKey(), **spec())).sealed_secrets


async def test_a_worker_without_a_key_gets_the_work_and_no_secret(ledger: Ledger, store: SecretStore) -> None:
    """A worker of an older version. Its job then fails with a reason, which a refused claim would not have."""
    await store.set("default", "hub", VALUE)
    assert not (await claimed(ledger, store, None, **spec())).sealed_secrets
