"""The subjects of this system on the broker. Each begins with `ftf.v1`."""

from __future__ import annotations

from typing import Final

from finetuneflow.v1 import fine_tuning_job_pb2, work_pb2

WORK: Final = "ftf.v1.work"
EVENTS: Final = "ftf.v1.jobs"
NODES_BUCKET: Final = "ftf_nodes"
INBOXES: Final = "_INBOX"
EVERYONE: Final = ".everyone"
"""Suffix of a subject on which a request goes to all processes that serve it."""


def claim(service: str, pool: str) -> str:
    """Returns the subject on which the processes of a service and pool claim attempts; `*` for all."""
    return f"ftf.v1.claim.{service}.{pool}"


def claimant(subject: str) -> tuple[str, str]:
    """Returns the service and pool of the subject of a claim."""
    service, pool = subject.split(".")[3:5]
    return service, pool


def report(job_id: str) -> str:
    """Returns the subject of reports for a job; `*` for all jobs."""
    return f"ftf.v1.report.{job_id}"


def event(job_id: str, kind: str) -> str:
    """Returns the subject on which accepted events of a job are published."""
    return f"{EVENTS}.{job_id}.{kind}"


def work(service: str, pool: str, item: work_pb2.WorkItem) -> str:
    """Returns the subject of an attempt. The stream holds at most one message on it."""
    stage = fine_tuning_job_pb2.Stage.Name(item.stage).removeprefix("STAGE_").lower()
    return f"{WORK}.{service}.{pool}.{item.job_id}.{stage}.{item.attempt}"


def queue(service: str, pool: str) -> str:
    """Returns the subjects of all attempts of a pool."""
    return f"{WORK}.{service}.{pool}.>"


def consumer(service: str, pool: str) -> str:
    """Returns the name of the durable consumer from which the processes of a pool pull."""
    return f"{service}_{pool}"


def node(service: str, node_id: str) -> str:
    """Returns the key of a live process."""
    return f"$KV.{NODES_BUCKET}.{service}.{node_id}"


def inbox(user: str) -> str:
    """Returns the prefix of the subjects on which a user of the broker receives answers."""
    return f"{INBOXES}.{user}"
