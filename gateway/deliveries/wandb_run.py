"""A job as a run of Weights & Biases: its settings, and a line of its history for each point in time."""

from __future__ import annotations

import json
from typing import Any, Final

from google.protobuf.json_format import MessageToDict

from engine.config.spec_proto import spec_to_dict
from finetuneflow.v1.event_pb2 import Event
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from gateway.deliveries.sinks import FollowedJob
from gateway.work.projection import points_of

LINE_KINDS: Final = frozenset({"log", "eval"})
"""Kinds of events that are a line of the history each."""
KINDS: Final = LINE_KINDS | {"config_resolved", "state_changed"}
EXIT_CODES: Final = {"JOB_STATE_SUCCEEDED": 0, "JOB_STATE_FAILED": 1, "JOB_STATE_CANCELLED": 255}
"""255 is what the library sends after Ctrl-C."""
MAX_TAG: Final = 64
STEP: Final = "global_step"
_PRIVATE: Final = ("integrations", "secrets")
"""Settings that are not about the training: addresses of other services, and names of secrets."""


def is_line(event: Event) -> bool:
    return event.WhichOneof("payload") in LINE_KINDS


def points(event: Event) -> dict[str, float]:
    """Returns the metrics of an event that is a line."""
    return dict(points_of(event))


def line(job: FollowedJob, number: int, event: Event) -> dict[str, Any]:
    """Returns the line of an event, the same one whenever it is made. `number` counts the job's lines from 0.

    The number is the `_step` of Weights & Biases, which must not go back as the steps of a repeated attempt do.
    """
    return {
        **points(event),
        STEP: event.log.step if event.HasField("log") else event.eval.step,
        "_step": number,
        "_timestamp": event.event_time.ToMicroseconds() / 1e6,
        "_runtime": runtime(job, event),
    }


def runtime(job: FollowedJob, event: Event) -> float:
    """Returns the seconds from the creation of the job to an event."""
    return max(event.event_time.ToMicroseconds() - job.create_time, 0) / 1e6


def state(event: Event) -> dict[str, str]:
    """Returns what the summary tells of a changed state."""
    change = MessageToDict(event.state_changed, preserving_proto_field_name=True)
    return {name: str(change.get(name, "")) for name in ("state", "stage", "reason")}


def settings(spec: FineTuningJobSpec) -> dict[str, Any]:
    """Returns the settings of a job that its run shows."""
    return {name: value for name, value in spec_to_dict(spec).items() if name not in _PRIVATE}


def about(job: FollowedJob) -> dict[str, Any]:
    """Returns what the settings tell of the job itself."""
    return {"job_id": job.job_id, "labels": job.labels}


def tags(job: FollowedJob) -> list[str]:
    return [f"{key}:{value}"[:MAX_TAG] for key, value in sorted(job.labels.items())]


def encoded(value: Any) -> str:
    """Returns JSON in which numbers that are not finite are NaN and Infinity, as the library writes them."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
