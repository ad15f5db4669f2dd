"""Certifies a key for one export with the operator's key, in the supervisor."""

from chassis.security.signing import SigningKey
from finetuneflow.package_signature import Statement, encoded, fingerprint
from services.exporter.worker.child_input import ExportKey


def export_key(operator: SigningKey, job_id: str, step: int) -> ExportKey:
    """Returns the key of the export of a job's checkpoint: the same each time, so that the package has the same bytes.
    For a base model `job_id` is the id of the export, which no job has, and `step` 0.

    Whoever has it can sign packages of that checkpoint, and nothing else.
    """
    private = operator.derived("finetuneflow export", job_id, str(step))
    public = SigningKey.of_bytes(private).public_bytes
    statement = Statement(public_key=encoded(public), job_id=job_id, step=step)
    return ExportKey(
        private_key=encoded(private),
        statement=statement,
        operator_signature=encoded(operator.sign(statement.canonical())),
        operator_key=fingerprint(operator.public_bytes),
    )
