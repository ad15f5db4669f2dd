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
    """Prefix of its ids."""
    plan: tuple[str, ...]
    """Its stages, in order."""
    reason: str
    """The reason of the error for an id that does not exist."""


FINE_TUNING_JOB = Kind(
    "fine_tuning_job",
    "fine-tuning job",
    "ftjob",
    ("STAGE_PREFLIGHT", "STAGE_TRAINING", "STAGE_EVALUATION", "STAGE_EXPORT"),
    reason="JOB_NOT_FOUND",
)
EVALUATION = Kind("evaluation", "evaluation", "ev", ("STAGE_EVALUATION",), reason="EVALUATION_NOT_FOUND")
EXPORT = Kind("export", "export", "ex", ("STAGE_EXPORT",), reason="EXPORT_NOT_FOUND")
KINDS = {kind.name: kind for kind in (FINE_TUNING_JOB, EVALUATION, EXPORT)}

SERVICES = {
    "STAGE_PREFLIGHT": "probe",
    "STAGE_TRAINING": "trainer",
    "STAGE_EVALUATION": "evaluator",
    "STAGE_EXPORT": "exporter",
}


def queue_of(stage: str, pool: str) -> tuple[str, str]:
    """Returns the service and pool that run a stage of work whose trainings run in `pool`."""
    # Training is the stage that pools scale; the others have one pool each.
    return SERVICES[stage], pool if stage == "STAGE_TRAINING" else "default"


def no_such(kind: Kind, work_id: str) -> NotFound:
    """The error for work that does not exist, or belongs to another tenant or kind."""
    message = f"There is no {kind.noun} {work_id!r}"
    other = next((each for each in KINDS.values() if each is not kind and work_id.startswith(f"{each.prefix}_")), None)
    if other is not None:
        message += f": that is the id of {'an' if other.noun[0] in 'aeiou' else 'a'} {other.noun}"
    return NotFound(kind.reason, f"{message}.")
