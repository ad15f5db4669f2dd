"""A look at a file of rows without a server: the probe's own child program, on this machine."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message

from engine.catalogue import Catalogue
from engine.config.spec_proto import dataset_job
from engine.data.template_limits import CPU_LIMIT, killed_by_template
from engine.errors import JobError, SystemFailure
from finetuneflow.cli.exits import JOB_FAILED, CommandFailed
from finetuneflow.errors import InvalidArgument, Unavailable, Violation
from finetuneflow.v1 import dataset_service_pb2 as pb
from standalone.guard import guarded
from standalone.settings import StandaloneSettings

Answer = TypeVar("Answer", bound=Message)


class LookHere:
    """Runs `python -m services.probe.worker.look` for each question: what it imports is gone when it has answered."""

    def validate(self, request: pb.ValidateDatasetRequest, file: Path) -> pb.ValidateDatasetResponse:
        return _look(request, file, pb.ValidateDatasetResponse(), first_row=1, num_rows=0)

    def preview(self, request: pb.PreviewDatasetRequest, file: Path) -> pb.PreviewDatasetResponse:
        rows = {"first_row": request.first_row, "num_rows": request.num_rows}
        return _look(request, file, pb.PreviewDatasetResponse(), **rows)


def _look(
    request: pb.ValidateDatasetRequest | pb.PreviewDatasetRequest, file: Path, answer: Answer, **rows: int
) -> Answer:
    settings = StandaloneSettings()
    try:
        model = Catalogue(settings.home, settings.models).fetch(request.base_model, tokenizer_only=True)
    except JobError as error:
        raise InvalidArgument(error.message, reason=error.reason, advice=error.advice) from error
    except SystemFailure as error:
        raise Unavailable(error.message, reason=error.reason, advice=error.advice) from error
    with tempfile.TemporaryDirectory() as folder:
        out, spec = Path(folder) / "out", Path(folder) / "spec.json"
        values = {"out_dir": str(out), "config": dataset_job(request), "file": str(file.absolute()), **rows}
        spec.write_text(json.dumps(values | {"tokenizer_dir": str(model.path)}), "utf-8")
        command = guarded([sys.executable, "-m", "services.probe.worker.look", str(spec)])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        refusal = out / "error.json"
        if refusal.exists():
            said = json.loads(refusal.read_text("utf-8"))
            violations = [Violation(**violation) for violation in said["violations"]]
            raise InvalidArgument(said["message"], reason=said["reason"], advice=said["advice"], violations=violations)
        if done.returncode == -CPU_LIMIT:
            end = killed_by_template()
            raise InvalidArgument(end.message, reason=end.reason, advice=end.advice)
        if done.returncode != 0:
            raise CommandFailed(
                f"The rows could not be looked at: {done.stderr.strip()[-2000:]}",
                code=JOB_FAILED,
                advice="Look at the installation: `ftf doctor`.",
            )
        answer.ParseFromString((out / "answer.pb").read_bytes())
    return answer
