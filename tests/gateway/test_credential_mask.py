"""Servers that quote the credentials of a request: the log of an integration has no part of them."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web
from pydantic import SecretStr
from sqlmodel import select

from finetuneflow.v1.fine_tuning_job_spec_pb2 import IntegrationSpec, MlflowSpec, WandbSpec
from gateway.deliveries.credential_mask import without_credentials
from gateway.integrations import delivery_of
from gateway.secret_store import SecretKeys, SecretStore
from gateway.sql.database import Database
from gateway.sql.tables import Delivery, DeliveryAttemptRow
from gateway.work.ledger import Ledger
from tests.gateway.jobs import create
from tests.gateway.test_deliveries import delivering, until

KEY = "local-8d1f0c5e2b7a4936d1e0f9a8b7c6d5e4f3a2b1c0"
SENT = base64.b64encode(f"api:{KEY}".encode()).decode()

Answer = Callable[[web.Request], web.Response]


@contextlib.asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    """Serves an answer to every request. Returns the address."""

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        return answer(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def failed(database: Database, ledger: Ledger, folder: Path, spec: IntegrationSpec) -> tuple[Delivery, str]:
    """Returns the row of a delivery that has failed once, and everything that its log has."""
    secrets = SecretStore(database, SecretKeys(folder / "secrets.key", SecretStr("")))
    await secrets.set("default", "key", KEY)
    row = delivery_of("default", await create(ledger), spec)
    async with database.write() as session:
        session.add(row)
    async with delivering(database, secrets):
        found = await until(database, row.id, lambda row: row.failures > 0)
    async with database.read() as session:
        query = select(DeliveryAttemptRow).where(DeliveryAttemptRow.delivery_id == row.id)
        tries = (await session.exec(query)).all()
    return found, "\n".join((found.error, found.run_name, found.run_url, *(each.error for each in tries)))


def assert_without_parts(text: str, *credentials: str) -> None:
    for each in credentials:
        assert not [each[at : at + 8] for at in range(len(each) - 7) if each[at : at + 8] in text], text


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("kept", [None, 20], ids=["whole", "cut"])
async def test_wandb_quotes_the_header(database: Database, ledger: Ledger, tmp_path: Path, kept: int | None) -> None:
    def answer(request: web.Request) -> web.Response:
        quoted = request.headers["authorization"][:kept]
        return web.json_response({"errors": [{"message": f"key {KEY} and {'x' * 120} got {quoted}"}]}, status=400)

    async with answering(answer) as url:
        wandb = WandbSpec(project="p", secret="key", base_url=url)
        row, text = await failed(database, ledger, tmp_path, IntegrationSpec(wandb=wandb))
    assert_without_parts(text, KEY, SENT)
    assert row.error.endswith("got Basic ***") and "key *** and xxx" in row.error


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_little_of_a_long_answer_is_shown(database: Database, ledger: Ledger, tmp_path: Path) -> None:
    """The address is a caller's choice: the answer may be that of a server which only the operator should reach."""
    async with answering(lambda _: web.json_response({"error": f"{'x' * 190}{SENT}{'y' * 900}"}, status=400)) as url:
        wandb = WandbSpec(project="p", secret="key", base_url=url)
        row, _ = await failed(database, ledger, tmp_path, IntegrationSpec(wandb=wandb))
    assert row.error == f"the server answered 400 to RunResumeStatus: {'x' * 190}***{'y' * 7}"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("username", ["", "someone"])
async def test_mlflow_quotes_the_header(database: Database, ledger: Ledger, tmp_path: Path, username: str) -> None:
    def answer(request: web.Request) -> web.Response:
        quoted = request.headers["authorization"]
        return web.json_response({"error_code": "BAD", "message": f"{'x' * 170} {quoted} {KEY}"}, status=400)

    async with answering(answer) as url:
        mlflow = MlflowSpec(tracking_uri=url, experiment="e", secret="key", username=username)
        row, text = await failed(database, ledger, tmp_path, IntegrationSpec(mlflow=mlflow))
    assert_without_parts(text, KEY, base64.b64encode(f"{username}:{KEY}".encode()).decode())
    assert row.error.endswith(f"{'Basic' if username else 'Bearer'} *** ***")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("body", [b"", json.dumps({"data": None}).encode()])
async def test_wandb_answers_without_data(database: Database, ledger: Ledger, tmp_path: Path, body: bytes) -> None:
    async with answering(lambda _: web.Response(body=body)) as url:
        wandb = WandbSpec(project="p", secret="key", base_url=url)
        row, _ = await failed(database, ledger, tmp_path, IntegrationSpec(wandb=wandb))
    assert row.error == "the server's answer to RunResumeStatus has no data; is base_url that of its API?"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("entity", "place"), [("", "the project p of the key's default entity"), ("e", "e/p")])
async def test_wandb_does_not_know_the_project(
    database: Database, ledger: Ledger, tmp_path: Path, entity: str, place: str
) -> None:
    async with answering(lambda _: web.json_response({}, status=404)) as url:
        wandb = WandbSpec(project="p", secret="key", base_url=url, entity=entity)
        row, _ = await failed(database, ledger, tmp_path, IntegrationSpec(wandb=wandb))
    assert f"answered 404 to RunResumeStatus: {place} does not exist, or {url} is not" in row.error


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Basic {SENT}", "Basic ***"),
        (f'{{"authorization":"Basic {SENT[:6]}…"}}', '{"authorization":"Basic ***…"}'),
        (f"it ends in {KEY[-12:]}, which is wrong", "it ends in ***, which is wrong"),
        (f"{KEY}{KEY}", "***"),
        ("nothing to hide", "nothing to hide"),
        ("", ""),
    ],
)
def test_parts_are_masked(text: str, shown: str) -> None:
    assert without_credentials(text, (KEY, SENT), 500) == shown


def test_a_credential_is_masked_before_the_text_is_cut() -> None:
    """No cut leaves a beginning that is too short to be found."""
    text = f"key {SENT} was refused"
    for most in range(len(text)):
        assert without_credentials(text, (KEY, SENT), most) == "key *** was refused"[:most]


def test_characters_that_are_quoted_in_an_address_are_masked() -> None:
    assert without_credentials("?token=a%2Fb%3Fc%26d HTTP", ("a/b?c&d",), 500) == "?token=*** HTTP"
