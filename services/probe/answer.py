"""One answer without a server: a question as JSON on stdin, its answer as JSON on stdout.

`ftf recommend`, `ftf estimate` and `ftf validate` ask it on a machine where no server is up. Counting data needs a
tokenizer, which no serving process may hold; this one ends with its answer.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict

from engine.catalogue import Catalogue
from engine.config.job import job_config
from engine.config.spec_proto import spec_to_dict
from engine.errors import JobError, SystemFailure
from finetuneflow.v1 import probe_service_pb2 as api
from services.inputs import catalogue
from services.probe.estimates import Estimates
from services.probe.preflights import dry_run_spec
from services.probe.settings import ProbeSettings


def answer(asked: dict[str, Any], settings: ProbeSettings) -> dict[str, Any]:
    """{"answer": ...}, or {"error": {reason, message, violations}} for what the caller can mend."""
    models, token = catalogue(settings), settings.hub_token.get_secret_value()
    try:
        estimates = Estimates(models, settings.home, hub_token=token, prices=settings.prices)
        match asked["question"]:
            case "recommend":
                advised = estimates.recommend(ParseDict(asked["request"], api.RecommendMethodRequest()))
                return {"answer": MessageToDict(advised, preserving_proto_field_name=True)}
            case "estimate":
                told = estimates.estimate(ParseDict(asked["request"], api.EstimateResourcesRequest()))
                return {"answer": MessageToDict(told, preserving_proto_field_name=True)}
            case "preflight":
                tried = ParseDict(asked["request"], api.PreflightFineTuningJobRequest())
                found = _preflight(
                    tried, {name: Path(path) for name, path in asked["sources"].items()}, models, settings
                )
                return {"answer": MessageToDict(found, preserving_proto_field_name=True)}
            case "count":
                request = ParseDict(asked["request"], api.EstimateResourcesRequest())
                return {"answer": _count(request, asked["data"], models, token)}
    except (JobError, SystemFailure) as error:
        message = error.message if error.advice in error.message else f"{error.message} {error.advice}"
        at_fault = error.violations if isinstance(error, JobError) else ()
        violations = [{"field": v.field, "description": v.description} for v in at_fault]
        return {"error": {"reason": error.reason, "message": message, "violations": violations}}
    raise ValueError(f"no such question: {asked['question']!r}")


def _preflight(
    request: api.PreflightFineTuningJobRequest, sources: dict[str, Path], models: Catalogue, settings: ProbeSettings
) -> api.PreflightFineTuningJobResponse:
    from services.probe.worker.dry_run import dry_run

    with tempfile.TemporaryDirectory() as folder:
        spec = dry_run_spec(request, sources, Path(folder) / "out", settings, models)
        return dry_run(spec, lambda _phase, _fraction: None)


def _count(
    request: api.EstimateResourcesRequest, data: list[dict[str, Any]], models: Catalogue, token: str
) -> dict[str, Any]:
    from engine.data.prepare import prepare

    sources = {f"file {index}": Path(source["dataset"]) for index, source in enumerate(data)}
    named = [{**source, "dataset": name} for source, name in zip(data, sources, strict=True)]
    config = job_config({**spec_to_dict(request.spec), "training_data": named})
    local = models.fetch(config.base_model, token or None, tokenizer_only=True)
    with tempfile.TemporaryDirectory() as folder:
        counted = prepare(config, local.path, sources, Path(folder), lambda _phase, _fraction: None)
    rows, held_out = counted.train, counted.eval.num_tokens
    return {
        "num_examples": rows.num_examples,
        "mean_tokens": rows.mean_tokens,
        "longest_row": rows.max_tokens,
        "held_out_tokens": held_out,
    }


def main() -> None:
    json.dump(answer(json.load(sys.stdin), ProbeSettings()), sys.stdout)


if __name__ == "__main__":
    main()
