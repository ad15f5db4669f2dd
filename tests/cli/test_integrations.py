"""`ftf integrations`, and what `ftf jobs get` shows of them."""

from __future__ import annotations

import json

import pytest
from google.protobuf.json_format import MessageToDict

from finetuneflow.v1 import integration_pb2 as pb
from tests.cli.conftest import Ftf
from tests.fakes.gateway import JOB, FakeGateway

URL = "https://wandb.ai/my-team/support-bot/runs/int_1"


@pytest.fixture
def followed(gateway: FakeGateway) -> pb.Integration:
    """An integration of the job that has failed."""
    made = pb.Integration(
        id="int_1", job_id=JOB, kind="wandb", state=pb.INTEGRATION_STATE_FAILED, run_name="my run", run_url=URL,
        delivered_sequence=17, last_error="the server answered 403 to file_stream",
    )  # fmt: skip
    gateway.integrations.append(made)
    return made


@pytest.mark.parametrize(
    ("options", "spec"),
    [
        (
            ["--webhook", "https://example.com/", "--secret", "hook", "--kind", "eval", "--kind", "log"],
            {"webhook": {"url": "https://example.com/", "secret": "hook", "kinds": ["eval", "log"]}},
        ),
        (["--tensorboard"], {"tensorboard": {}}),
        (
            ["--mlflow", "https://mlflow.example.com", "--username", "me", "--secret", "token", "--experiment", "bot"],
            {
                "mlflow": {
                    "tracking_uri": "https://mlflow.example.com",
                    "username": "me",
                    "secret": "token",
                    "experiment": "bot",
                }
            },
        ),
        (
            ["--wandb", "--secret", "key", "--project", "bot", "--entity", "my-team", "--run-name", "first"],
            {"wandb": {"secret": "key", "project": "bot", "entity": "my-team", "run_name": "first"}},
        ),
        (["--wandb", "--offline"], {"wandb": {"offline": True}}),
    ],
)
def test_each_service_is_added_with_its_settings(
    ftf: Ftf, gateway: FakeGateway, options: list[str], spec: dict[str, object]
) -> None:
    result = ftf("integrations", "add", JOB, *options, "--json")
    assert result.exit_code == 0, result.output
    (request,) = gateway.requests("CreateIntegration")
    assert MessageToDict(request.spec, preserving_proto_field_name=True) == spec
    assert json.loads(result.stdout)["id"] == "int_1"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--tensorboard", "--secret", "hook"], ["--secret"]),
        (["--webhook", "https://a.com", "--secret", "hook", "--experiment", "bot"], ["--experiment"]),
        (["--mlflow", "https://a.com", "--kind", "eval", "--offline"], ["--kind", "--offline"]),
        (["--wandb", "--secret", "key", "--username", "me"], ["--username"]),
        (["--tensorboard", "--wandb"], ["--webhook, --tensorboard, --mlflow, --wandb"]),
        ([], ["--webhook, --tensorboard, --mlflow, --wandb"]),
    ],
)
def test_an_option_of_another_service_is_refused(
    ftf: Ftf, gateway: FakeGateway, options: list[str], named: list[str]
) -> None:
    """An option that does nothing looks as if it had worked."""
    result = ftf("integrations", "add", JOB, *options, "--json")
    assert result.exit_code == 2
    assert [each["field"] for each in json.loads(result.stderr)["error"]["violations"]] == named
    assert not gateway.requests("CreateIntegration")


def test_lists_and_jobs_show_the_run_and_its_address(ftf: Ftf, followed: pb.Integration) -> None:
    listed = ftf("integrations", "list", JOB)
    assert listed.exit_code == 0
    headers, cells = (line.split("\t") for line in listed.stdout.splitlines())
    shown = dict(zip(headers, cells, strict=True))
    assert (shown["ID"], shown["KIND"], shown["STATE"], shown["LAST EVENT"]) == ("int_1", "wandb", "FAILED", "17")
    assert (shown["RUN"], shown["URL"]) == ("my run", URL) and "403" in shown["LAST ERROR"]
    assert URL in ftf("jobs", "get", JOB).stdout
    assert json.loads(ftf("integrations", "list", JOB, "--json").stdout)["run_url"] == URL


def test_address_is_shown_before_there_is_a_run(ftf: Ftf, followed: pb.Integration) -> None:
    """A typing mistake in it is the first thing to look for; what a URL contains beside it is nobody's business."""
    followed.run_url, followed.kind = "", "webhook"
    followed.spec.webhook.url = "https://hooks.example.com/x?token=1"
    assert "\thttps://hooks.example.com/x\t" in ftf("integrations", "list", JOB).stdout
    followed.kind = "mlflow"
    followed.spec.mlflow.tracking_uri = "https://tracking.example.com"
    assert "https://tracking.example.com" in ftf("jobs", "get", JOB).stdout


def test_a_failed_one_is_continued_and_deleted(ftf: Ftf, gateway: FakeGateway, followed: pb.Integration) -> None:
    assert ftf("integrations", "retry", "int_1").stdout.strip() == "int_1 RETRYING"
    followed.state = pb.INTEGRATION_STATE_ACTIVE
    assert ftf("integrations", "retry", "int_1").stdout.strip() == "int_1 ACTIVE: nothing had to be retried."
    assert ftf("integrations", "delete", "int_1").exit_code == 0
    assert not gateway.integrations
    for command in ("retry", "delete", "log"):
        assert ftf("integrations", command, "int_1").exit_code == 2


def test_the_log_has_every_try_that_is_kept(ftf: Ftf, gateway: FakeGateway, followed: pb.Integration) -> None:
    gateway.delivery_attempts = 100
    headers, first, *rest = ftf("integrations", "log", "int_1").stdout.splitlines()
    assert headers.split("\t") == ["TRY", "TIME", "EVENTS", "STATUS", "SECONDS", "ERROR"]
    assert first.split("\t") == ["100", "", "100-102", "500", "0.50", "the receiver answered 500"]
    assert len(rest) == 99 and rest[-1].split("\t")[0] == "1"
    assert len(ftf("integrations", "log", "int_1", "--limit", "5").stdout.splitlines()) == 6
