"""The kinds of work, and which service runs which stage."""

from dataclasses import dataclass

from chassis.errors import NotFound


@dataclass(frozen=True)
class Kind:
    """One kind. Attempts, claims, leases, reports, events and verbs are the same for all of them."""

    name: str
    """In SQL."""
    noun: str
    """In messages."""
    prefix: str
    """Of its ids."""
    not_found: str
    """The reason where there is no work of that id."""
    plan: tuple[str, ...]
    """Its stages, in order."""


FINE_TUNING_JOB = Kind(
    "fine_tuning_job",
    "fine-tuning job",
    "ftjob",
    "JOB_NOT_FOUND",
    ("STAGE_PREFLIGHT", "STAGE_TRAINING", "STAGE_EVALUATION", "STAGE_EXPORT"),
)
EVALUATION = Kind("evaluation", "evaluation", "ev", "EVALUATION_NOT_FOUND", ("STAGE_EVALUATION",))
EXPORT = Kind("export", "export", "ex", "EXPORT_NOT_FOUND", ("STAGE_EXPORT",))
KINDS = {kind.name: kind for kind in (FINE_TUNING_JOB, EVALUATION, EXPORT)}

SERVICES = {
    "STAGE_PREFLIGHT": "probe",
    "STAGE_TRAINING": "trainer",
    "STAGE_EVALUATION": "evaluator",
    "STAGE_EXPORT": "exporter",
}


def no_such(kind: Kind, work_id: str) -> NotFound:
    """The error for work that does not exist, or belongs to another tenant or kind."""
    return NotFound(kind.not_found, f"there is no {kind.noun} {work_id!r}")
