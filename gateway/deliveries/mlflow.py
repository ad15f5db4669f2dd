"""MLflow: a run with parameters, metrics by step, tags and the report, through the server's REST API.

Not through MLflow's own client, which would resolve the caller's host name itself, follow redirects and block. A point
that is sent again changes nothing at the server, and the run is found again by its tag.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from google.protobuf.json_format import MessageToDict
from pydantic import SecretStr
from sqlmodel import col, select

from chassis.store.artifact_store import ArtifactMissing, ArtifactStore
from finetuneflow.v1.event_pb2 import Event
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec, MlflowSpec
from gateway.deliveries.http_client import HttpClient
from gateway.deliveries.sinks import DeliveryFailed, FollowedJob, TrackerRun
from gateway.sql.database import Database
from gateway.sql.tables import SavedArtifact, now
from gateway.uncancellable import in_thread
from gateway.work.projection import points_of

_TAG: Final = "finetuneflow.integration"
_FILES: Final = ("report.md", "metrics.json")
_MAX_FILE_BYTES: Final = 16 << 20
_MAX_PARAMS: Final = 100
_MAX_METRICS: Final = 1000
_MAX_VALUE: Final = 500
_PROXIED: Final = "mlflow-artifacts:/"
_STATUS: Final = {"JOB_STATE_SUCCEEDED": "FINISHED", "JOB_STATE_FAILED": "FAILED", "JOB_STATE_CANCELLED": "KILLED"}


class Mlflow:
    """A run on an MLflow server."""

    kinds = frozenset({"log", "eval", "config_resolved", "state_changed"})
    batch = 50
    from_start = False
    idle_seconds: float | None = None

    def __init__(
        self,
        spec: MlflowSpec,
        job: FollowedJob,
        secret: SecretStr | None,
        http: HttpClient,
        database: Database,
        store: ArtifactStore,
    ) -> None:
        self._spec, self._job, self._http = spec, job, http
        self._database, self._store = database, store
        self._uri = spec.tracking_uri.rstrip("/")
        self._headers = {"content-type": "application/json", "user-agent": "finetuneflow"}
        self.credentials: Sequence[str] = ()
        if secret is not None:
            value = secret.get_secret_value().strip()
            sent = base64.b64encode(f"{spec.username}:{value}".encode()).decode() if spec.username else value
            self._headers["authorization"] = f"{'Basic' if spec.username else 'Bearer'} {sent}"
            self.credentials = (value, sent)
        self._run_id = self._artifacts = ""
        self._params: dict[str, str] = {}
        """Parameters that the run has; the server refuses to change one."""

    async def open(self) -> TrackerRun:
        experiment = await self._experiment()
        run = await self._find(experiment) or await self._create(experiment)
        info = run["info"]
        self._run_id, self._artifacts = info["run_id"], info.get("artifact_uri", "")
        self._params = {each["key"]: each.get("value", "") for each in run.get("data", {}).get("params", ())}
        return TrackerRun(info.get("run_name", ""), f"{self._uri}/#/experiments/{experiment}/runs/{self._run_id}")

    async def write(self, events: Sequence[Event]) -> int:
        metrics = [metric for event in events for metric in _metrics(event)]
        for some in _batches(metrics, _MAX_METRICS):
            await self._log(metrics=some)
        for event in events:
            if event.HasField("config_resolved"):
                await self._log_spec(event.config_resolved.resolved_spec)
            elif event.HasField("state_changed"):
                change = MessageToDict(event.state_changed, preserving_proto_field_name=True)
                tags = [
                    _pair(f"finetuneflow.{name}", str(change.get(name, ""))) for name in ("state", "stage", "reason")
                ]
                await self._log(tags=tags)
        return 200

    async def finish(self, state: str) -> Sequence[SavedArtifact]:
        await self._upload()
        ended = {"run_id": self._run_id, "status": _STATUS[state], "end_time": now() // 1000}
        await self._post("runs/update", ended)
        return ()

    async def close(self) -> None:
        self._run_id = ""

    async def _experiment(self) -> str:
        name = self._spec.experiment
        found = await self._call("GET", "experiments/get-by-name", params={"experiment_name": name})
        if found is None:
            made = await self._call("POST", "experiments/create", {"name": name}, absent="RESOURCE_ALREADY_EXISTS")
            if made is not None:
                return str(made["experiment_id"])
            found = await self._call("GET", "experiments/get-by-name", params={"experiment_name": name})
        if found is None or found["experiment"].get("lifecycle_stage") == "deleted":
            raise DeliveryFailed(f"the experiment {name} was deleted at the server; restore it there")
        return str(found["experiment"]["experiment_id"])

    async def _find(self, experiment: str) -> dict[str, Any] | None:
        query = {
            "experiment_ids": [experiment],
            "filter": f"tags.`{_TAG}` = '{self._job.integration_id}'",
            "max_results": 1,
        }
        runs: list[dict[str, Any]] = (await self._post("runs/search", query)).get("runs", [])
        return runs[0] if runs else None

    async def _create(self, experiment: str) -> dict[str, Any]:
        tags = {
            _TAG: self._job.integration_id,
            "finetuneflow.job": self._job.job_id,
            **{f"finetuneflow.label.{key}": value for key, value in self._job.labels.items()},
        }
        run = {
            "experiment_id": experiment,
            "run_name": self._spec.run_name or self._job.display_name,
            "start_time": self._job.create_time // 1000,
            "tags": [_pair(key, value) for key, value in tags.items()],
        }
        return dict((await self._post("runs/create", run))["run"])

    async def _log_spec(self, spec: FineTuningJobSpec) -> None:
        params = dict(_flat(MessageToDict(spec, preserving_proto_field_name=True)))
        new = [_pair(key, value) for key, value in params.items() if key not in self._params]
        for some in _batches(new, _MAX_PARAMS):
            await self._log(params=some)
        self._params = params | self._params
        # Such as the micro-batch of a training that ran out of memory.
        changed = [
            _pair(f"finetuneflow.changed.{key}", value) for key, value in params.items() if self._params[key] != value
        ]
        if changed:
            await self._log(tags=changed[:_MAX_PARAMS])

    async def _upload(self) -> None:
        """Uploads the files of the job's package that people read."""
        names = [f"export/{name}" for name in _FILES]
        query = select(SavedArtifact).where(
            SavedArtifact.work_id == self._job.job_id, col(SavedArtifact.name).in_(names)
        )
        async with self._database.read() as session:
            files = (await session.exec(query)).all()
        files = [each for each in files if each.size_bytes <= _MAX_FILE_BYTES]
        if files and not self._artifacts.startswith(_PROXIED):
            await self._log(tags=[_pair("finetuneflow.artifacts", "not uploaded: the server does not take artifacts")])
            return
        for each in files:
            try:
                content = await in_thread(self._content, f"{self._job.tenant}/{each.path}")
            except ArtifactMissing:
                raise DeliveryFailed(f"{each.name} is missing in the artifact store", final=True) from None
            path = f"{self._artifacts.removeprefix(_PROXIED)}/{each.name.rpartition('/')[2]}"
            url = f"{self._uri}/api/2.0/mlflow-artifacts/artifacts/{quote(path.lstrip('/'))}"
            headers = {**self._headers, "content-type": "application/octet-stream"}
            status, _ = await self._http.send("PUT", url, headers=headers, body=content)
            if status != 200:
                raise DeliveryFailed(f"the server answered {status} to {each.name}", http_status=status)

    def _content(self, path: str) -> bytes:
        with self._store.open_read(path) as source:
            return source.read(_MAX_FILE_BYTES)

    async def _log(self, **values: Sequence[Mapping[str, Any]]) -> None:
        await self._post("runs/log-batch", {"run_id": self._run_id, **values})

    async def _post(self, method: str, message: Mapping[str, Any]) -> dict[str, Any]:
        return await self._call("POST", method, message, absent="") or {}

    async def _call(
        self,
        verb: str,
        method: str,
        message: Mapping[str, Any] | None = None,
        *,
        params: Mapping[str, str] | None = None,
        absent: str = "RESOURCE_DOES_NOT_EXIST",
    ) -> dict[str, Any] | None:
        """Returns the answer; None if the server answers with the error code `absent`."""
        url = f"{self._uri}/api/2.0/mlflow/{method}"
        body = None if message is None else json.dumps(message).encode()
        status, answer = await self._http.send(verb, url, headers=self._headers, body=body, params=params, read=True)
        try:
            read = json.loads(answer or b"{}")
        except ValueError:
            read = None
        if status == 200 and isinstance(read, dict):
            return read
        code = read.get("error_code", "") if isinstance(read, dict) else ""
        if absent and code == absent:
            return None
        said = str(read.get("message", "")) if isinstance(read, dict) else "the answer is not an MLflow server's JSON"
        words = " ".join(filter(None, (str(code), said)))
        raise DeliveryFailed(f"the server answered {status} to {method}: ", said=words, http_status=status)


def _metrics(event: Event) -> Iterator[dict[str, Any]]:
    step = event.log.step if event.HasField("log") else event.eval.step
    for name, value in points_of(event):
        number: float | str = value
        if not math.isfinite(value):
            # As the JSON of protobuf writes them.
            number = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        yield {"key": name, "value": number, "timestamp": event.event_time.ToMilliseconds(), "step": step}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _pair(key: str, value: str) -> dict[str, str]:
    return {"key": key[:250], "value": value[:_MAX_VALUE]}


def _batches(values: Sequence[Mapping[str, Any]], size: int) -> Iterator[list[Mapping[str, Any]]]:
    left = iter(values)
    while some := list(itertools.islice(left, size)):
        yield some
