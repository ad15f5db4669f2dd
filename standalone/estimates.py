"""Recommendations and estimates without a server: the probe's own program, asked once."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message

from finetuneflow.cli.estimates import Counted
from finetuneflow.cli.exits import JOB_FAILED, CommandFailed
from finetuneflow.errors import InvalidArgument, Violation
from finetuneflow.v1 import probe_service_pb2 as pb
from standalone.guard import guarded

_LOOK = "Look at the installation: `ftf doctor`."


class ProbeHere:
    """Runs `python -m services.probe.answer` for each question: a service's code is never imported by another program,
    and what it imports is gone when it has answered."""

    def recommend(self, request: pb.RecommendMethodRequest) -> pb.RecommendMethodResponse:
        return ParseDict(_ask("recommend", request), pb.RecommendMethodResponse())

    def estimate(self, request: pb.EstimateResourcesRequest) -> pb.EstimateResourcesResponse:
        return ParseDict(_ask("estimate", request), pb.EstimateResourcesResponse())

    def preflight(
        self, request: pb.PreflightFineTuningJobRequest, files: Mapping[str, Path]
    ) -> pb.PreflightFineTuningJobResponse:
        """For this machine. No weights are read; what is kept is the description of a model that was not here yet."""
        named = {name: str(path.absolute()) for name, path in files.items()}
        return ParseDict(_ask("preflight", request, sources=named), pb.PreflightFineTuningJobResponse())

    def count(self, request: pb.EstimateResourcesRequest, data: Sequence[Mapping[str, Any]]) -> Counted:
        """With the model's own tokenizer and template, cut at max_length as the training would."""
        named = [{**source, "dataset": str(Path(source["dataset"]).absolute())} for source in data]
        return Counted(**_ask("count", request, data=named))


def _ask(question: str, request: Message, **more: Any) -> dict[str, Any]:
    asked = {"question": question, "request": MessageToDict(request, preserving_proto_field_name=True), **more}
    # It may take minutes, and of whoever ends `ftf` nobody waits for it.
    command = guarded([sys.executable, "-m", "services.probe.answer"])
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandFailed(f"The probe's program failed: {done.stderr.strip()[-2000:]}", code=JOB_FAILED, advice=_LOOK)
    answer: dict[str, Any] = json.loads(done.stdout)
    if error := answer.get("error"):
        violations = [Violation(**violation) for violation in error["violations"]]
        raise InvalidArgument(error["message"], reason=error["reason"], violations=violations)
    answered: dict[str, Any] = answer["answer"]
    return answered
