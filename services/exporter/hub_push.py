"""The push of a package to the hub, as an exporter's supervisor starts it."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from chassis.attempt.stage import Delivery
from chassis.store.artifact_store import Stored
from engine.config.job import PUSH_USE
from finetuneflow.v1.work_pb2 import Assignment
from services.exporter.push.push_input import PackageFile, PushInput
from services.hub_access import token_of_secret

_PASSED_ON: Final = (
    "HF_ENDPOINT", "HF_HUB_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy",
    "all_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip
"""Variables of the exporter that say where the hub is and how it is reached."""


def token_secret(assignment: Assignment) -> str:
    """Returns the name of the secret with the token for the push; empty if nothing is pushed."""
    spec = assignment.resolved_spec
    return str(spec.secrets.get(PUSH_USE, "")) if spec.export.HasField("hub") else ""


def write_token(assignment: Assignment, secrets: Mapping[str, SecretStr]) -> SecretStr | None:
    """Returns the token for the push; None if nothing is pushed. Raises JobError SECRET_MISSING, HUB_TOKEN_REFUSED."""
    name = token_secret(assignment)
    return SecretStr(token_of_secret(name, secrets.get(name), PUSH_USE)) if name else None


def delivery_of(
    assignment: Assignment,
    stored: Mapping[str, Stored],
    package: str,
    step: int,
    out_dir: Path,
    workdir: Path,
    token: SecretStr,
) -> Delivery:
    """Writes the input of the push and returns how to start it. `stored` are the files of the child by their names in
    `out_dir`, `package` is the path of the zip among them, which is not pushed."""
    hub = assignment.resolved_spec.export.hub
    default = f"Upload the model of FineTuneFlow job {assignment.fine_tuning_job_id}, step {step}"
    push_input = PushInput(
        out_dir=out_dir,
        files=[
            PackageFile(name=name, sha256=file.sha256, size_bytes=file.size_bytes)
            for name, file in sorted(stored.items())
            if file.path != package
        ],
        repo_id=hub.repo_id,
        private=hub.private,
        revision=hub.revision,
        commit_message=hub.commit_message or default,
    )
    file = workdir / "push.json"
    file.write_text(push_input.model_dump_json(indent=1), "utf-8")
    return Delivery([sys.executable, "-m", "services.exporter.push", str(file)], _environment(workdir), token)


def _environment(workdir: Path) -> dict[str, str]:
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {
        # Children of an attempt have it switched off.
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        # The caller's token, or none: never the login of this machine's user.
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HOME": str(workdir / "hub-home"),
        # It reads files by their names, which a process that was left behind could exchange.
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        # Its warnings contain addresses that let others upload.
        "HF_HUB_VERBOSITY": "critical",
        "PYTHONWARNINGS": "ignore",
        **passed,
    }
