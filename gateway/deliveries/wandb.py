"""Weights & Biases: a run with settings, metrics by step and the job's state, through the server's API.

Not through the library, which would start a process with its own access to the network for each run. A run's history is
a file of lines at the server, and a request names the number of its first line: lines that are sent again after a lost
answer replace themselves. The numbers follow from the job's events in SQL.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import SecretStr
from sqlalchemy import func
from sqlmodel import col, select

from finetuneflow.v1.event_pb2 import Event
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec, WandbSpec
from gateway.deliveries import wandb_run
from gateway.deliveries.http_client import HttpClient
from gateway.deliveries.sinks import DeliveryFailed, FollowedJob, TrackerRun
from gateway.sql.database import Database
from gateway.sql.tables import SavedArtifact, WorkEvent

DEFAULT_URL: Final = "https://api.wandb.ai"
_HISTORY: Final = "wandb-history.jsonl"
_SUMMARY: Final = "wandb-summary.json"
_LINES: Final = 50
"""Most lines of one request."""
_MAX_NAME: Final = 256
_REPEATED: Final = (408, 409, 425, 429)
"""Statuses from 400 to 499 after which another try may succeed."""
_NOT_IMPLEMENTED: Final = 501
_AXIS: Final = {"1": wandb_run.STEP, "6": [3]}
"""The definition of a metric: its name, and 3 for one that was defined and not guessed."""
_FIND: Final = """query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) {
    name
    entity { name }
    bucket(name: $name, missingOk: true) { name displayName config summaryMetrics historyLineCount }
  }
}"""
_UPSERT: Final = """mutation UpsertBucket(
  $name: String, $project: String, $entity: String, $displayName: String, $config: JSONString, $tags: [String!]
) {
  upsertBucket(input: {
    name: $name, modelName: $project, entityName: $entity, displayName: $displayName, config: $config, tags: $tags
  }) {
    bucket { name displayName project { name entity { name } } historyLineCount }
    inserted
  }
}"""


class Wandb:
    """A run at Weights & Biases. Its id is that of the integration."""

    kinds = wandb_run.KINDS
    batch = _LINES
    from_start = False
    idle_seconds: float | None = 60.0
    """A run that is silent for some minutes is shown as crashed."""

    def __init__(
        self, spec: WandbSpec, job: FollowedJob, secret: SecretStr, http: HttpClient, database: Database
    ) -> None:
        self._spec, self._job, self._http, self._database = spec, job, http, database
        self._url = (spec.base_url or DEFAULT_URL).rstrip("/")
        key = secret.get_secret_value().strip()
        sent = base64.b64encode(f"api:{key}".encode()).decode()
        self.credentials: Sequence[str] = (key, sent)
        self._headers = {
            "content-type": "application/json",
            "user-agent": "finetuneflow",
            "authorization": f"Basic {sent}",
        }
        self._entity, self._project = spec.entity, spec.project
        self._config: dict[str, Any] = {}
        self._summary: dict[str, Any] = {}
        self._lines = 0
        """Lines of the history that the server has."""

    async def open(self) -> TrackerRun:
        place = {"project": self._project, "entity": self._entity or None, "name": self._job.integration_id}
        model = (await self._graphql(_FIND, place)).get("model") or {}
        run = model.get("bucket")
        self._config = _read(run, "config")
        if run is None or "_wandb" not in self._config:
            self._config |= {
                **_values(self._job.spec),
                "finetuneflow": {"value": wandb_run.about(self._job)},
                # Without `t` the library would not resume the run.
                "_wandb": {"value": {"t": {}, "m": [_AXIS]}},
            }
            name, tags = self._spec.run_name or self._job.display_name, wandb_run.tags(self._job)
            run = await self._upsert(displayName=name, tags=tags)
            model = run.get("project") or {}
        self._entity = (model.get("entity") or {}).get("name") or self._entity
        self._project = model.get("name") or self._project
        if not self._entity:
            raise DeliveryFailed("the server does not name the key's default entity; set entity, a user or a team")
        self._summary, self._lines = _read(run, "summaryMetrics"), run.get("historyLineCount") or 0
        path = f"{_quoted(self._entity)}/{_quoted(self._project)}/runs/{_quoted(self._job.integration_id)}"
        return TrackerRun((run.get("displayName") or "")[:_MAX_NAME], f"{_page_of(self._url)}/{path}")

    async def write(self, events: Sequence[Event]) -> int:
        for event in events:
            if event.HasField("config_resolved"):
                self._config |= _values(event.config_resolved.resolved_spec)
                await self._upsert()
        lines = [event for event in events if wandb_run.is_line(event)]
        if lines:
            first = await self._number_of(lines[0])
            await self._send_missing(first)
            await self._send(first, lines, events)
        else:
            await self._send(0, (), events)
        return 200

    async def finish(self, state: str) -> Sequence[SavedArtifact]:
        await self._send_missing(await self._number_of(None))
        await self._stream({"complete": True, "exitcode": wandb_run.EXIT_CODES[state]})
        return ()

    async def close(self) -> None:
        self._lines = 0

    async def _number_of(self, event: Event | None) -> int:
        """Returns the number of the line of an event; None: of the next one."""
        query = select(func.count()).where(
            WorkEvent.work_id == self._job.job_id, col(WorkEvent.kind).in_(wandb_run.LINE_KINDS)
        )
        if event is not None:
            query = query.where(WorkEvent.sequence < event.sequence)
        async with self._database.read() as session:
            return (await session.exec(query)).one()

    async def _send_missing(self, end: int) -> None:
        """Sends the lines before `end` that the server has not, such as one that was restored from a backup."""
        while self._lines < end:
            query = select(WorkEvent.event).where(
                WorkEvent.work_id == self._job.job_id, col(WorkEvent.kind).in_(wandb_run.LINE_KINDS)
            )
            page = query.order_by(col(WorkEvent.sequence)).offset(self._lines).limit(min(_LINES, end - self._lines))
            async with self._database.read() as session:
                events = [Event.FromString(event) for event in (await session.exec(page)).all()]
            if not events:
                # The job was deleted meanwhile.
                return
            await self._send(self._lines, events, events)

    async def _send(self, first: int, lines: Sequence[Event], events: Sequence[Event]) -> None:
        """Sends lines from number `first` on, and the summary after `events`. With neither, a sign of life."""
        await self._define([name for event in lines for name in wandb_run.points(event)])
        made = [wandb_run.line(self._job, number, event) for number, event in enumerate(lines, first)]
        for line in made:
            self._summary |= line
        for event in events:
            if event.HasField("state_changed"):
                self._summary["finetuneflow"] = wandb_run.state(event)
        files = {}
        if made:
            files[_HISTORY] = {"offset": first, "content": [wandb_run.encoded(line) for line in made]}
        if events:
            self._summary["_wandb"] = {"runtime": int(wandb_run.runtime(self._job, events[-1]))}
            files[_SUMMARY] = {"offset": 0, "content": [wandb_run.encoded(self._summary)]}
        await self._stream({"files": files} if files else {})
        self._lines = max(self._lines, first + len(made))

    async def _define(self, names: Sequence[str]) -> None:
        """Makes the training step the axis of metrics that the run did not have."""
        metrics = self._config["_wandb"]["value"].setdefault("m", [])
        known = [each.get("1") for each in metrics]
        new = [name for name in dict.fromkeys(names) if name not in known]
        if new:
            if wandb_run.STEP not in known:
                metrics.append(_AXIS)
                known.append(wandb_run.STEP)
            # "5" is the position of the axis in this list, from 1.
            metrics += [{"1": name, "5": known.index(wandb_run.STEP) + 1, "6": [3]} for name in new]
            await self._upsert()

    async def _upsert(self, **values: Any) -> dict[str, Any]:
        given = {
            "name": self._job.integration_id,
            "project": self._project,
            "entity": self._entity or None,
            "config": wandb_run.encoded(self._config),
            **values,
        }
        answer = (await self._graphql(_UPSERT, given)).get("upsertBucket") or {}
        if not isinstance(run := answer.get("bucket"), dict):
            raise DeliveryFailed("the server's answer to UpsertBucket names no run; is base_url that of its API?")
        return run

    async def _graphql(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        name = query.split("(", 1)[0].split()[1]
        answer = await self._post("graphql", {"query": query, "variables": variables, "operationName": name}, name)
        data = answer.get("data")
        if answer.get("errors") or not isinstance(data, dict):
            problem, said = f"the server refused {name}: ", _said(answer)
            if not said:
                problem = f"the server's answer to {name} has no data; is base_url that of its API?"
            raise DeliveryFailed(problem, said=said, http_status=200)
        return data

    async def _stream(self, message: Mapping[str, Any]) -> None:
        run = "/".join(_quoted(part) for part in (self._entity, self._project, self._job.integration_id))
        await self._post(f"files/{run}/file_stream", message, "file_stream")

    async def _post(self, path: str, message: Mapping[str, Any], name: str) -> dict[str, Any]:
        body = wandb_run.encoded(message).encode()
        status, answer = await self._http.send(
            "POST", f"{self._url}/{path}", headers=self._headers, body=body, read=True
        )
        try:
            read = json.loads(answer or b"{}")
        except ValueError:
            read = None
        if 200 <= status < 300 and isinstance(read, dict):
            return read
        said = _said(read)
        # 409 is also the answer to two requests at once, after which another try succeeds.
        deleted = (status in (404, 410) and name == "file_stream") or (status in (409, 410) and "deleted" in said)
        final = deleted or (400 <= status < 500 and status not in _REPEATED) or status == _NOT_IMPLEMENTED
        raise DeliveryFailed(self._refusal(status, name, deleted), said=said, http_status=status, final=final)

    def _refusal(self, status: int, name: str, deleted: bool) -> str:
        """Returns what precedes the server's own words."""
        place = f"{self._entity}/{self._project}"
        if not self._entity:
            place = f"the project {self._project} of the key's default entity"
        match status:
            case _ if deleted:
                advice = f"the run {self._job.integration_id} in {place} was deleted; add another integration"
            case 401:
                advice = f"the secret {self._spec.secret} is no valid API key of {self._url}; set it again"
            case 403:
                advice = f"the key in the secret {self._spec.secret} may not write to {place}; use one that may"
            case 404:
                advice = (
                    f"{place} does not exist, or {self._url} is not the address of the API; correct entity or base_url"
                )
            case 200:
                advice = f"{self._url} is no server of Weights & Biases"
            case _:
                advice = "redirects are not followed" if 300 <= status < 400 else ""
        return f"the server answered {status} to {name}: " + (f"{advice}; " if advice else "")


def _values(spec: FineTuningJobSpec) -> dict[str, Any]:
    return {name: {"value": value} for name, value in wandb_run.settings(spec).items()}


def _read(run: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """Returns a field of a run that holds an object as JSON."""
    try:
        value = json.loads((run or {}).get(name) or "{}")
    except (TypeError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise DeliveryFailed(f"the server's {name} of the run is no object")
    return value


def _said(answer: Any) -> str:
    """Returns the server's own words."""
    given = answer.get("errors") or answer.get("error") or "" if isinstance(answer, dict) else "no JSON object"
    each = given if isinstance(given, list) else [given]
    texts = [str(some.get("message", some) if isinstance(some, dict) else some) for some in each]
    return "; ".join(filter(None, texts))


def _quoted(part: str) -> str:
    return quote(part, safe="")


def _page_of(url: str) -> str:
    """Returns the address of the web pages of a server: that of its API without a leading `api.`."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.removeprefix("api.")))
