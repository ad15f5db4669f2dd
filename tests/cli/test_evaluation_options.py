"""Options of `ftf evaluate`, and what they send."""

from typing import Any

import pytest
import typer

from finetuneflow.cli.evaluation_options import with_removed
from finetuneflow.client import Client
from finetuneflow.v1 import evaluation_pb2, evaluation_service_pb2
from tests.fakes.gateway import FakeGateway, Running

SETTINGS: dict[str, Any] = {"graders": None, "gate": [{"metric": "loss", "max_value": 2.0}], "questions": None}


def test_removed_settings_are_empty() -> None:
    assert with_removed(SETTINGS, ["graders", "questions"]) == {**SETTINGS, "graders": [], "questions": ""}


@pytest.mark.parametrize(("name", "problem"), [("gate", "is removed and given"), ("max_rows", "cannot be removed")])
def test_setting_that_cannot_be_removed_is_refused(name: str, problem: str) -> None:
    """The caller would believe that the job's own one is gone."""
    with pytest.raises(typer.BadParameter, match=problem):
        with_removed(SETTINGS, [name])


def test_empty_values_are_sent_as_removed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty list cannot be told from an unset one, so the job's own graders would apply."""
    gateway = FakeGateway()
    asked: list[evaluation_service_pb2.CreateEvaluationRequest] = []

    def create(self: Any, request: Any, context: Any) -> Any:
        asked.append(request)
        made = evaluation_pb2.Evaluation(id="ev_1")
        return evaluation_service_pb2.CreateEvaluationResponse(evaluation=made)

    monkeypatch.setattr(FakeGateway, "CreateEvaluation", create)
    running = Running(gateway)
    running.start()
    try:
        with Client(running.address) as client:
            client.evaluations.create("ft:ftjob_1", graders=[], questions="", json_schema={}, metrics=["bleu"])
    finally:
        running.stop()
    (request,) = asked
    assert set(request.clear_fields) == {"graders", "questions", "json_schema"}
    assert list(request.spec.metrics) == ["bleu"] and not request.spec.HasField("json_schema")
