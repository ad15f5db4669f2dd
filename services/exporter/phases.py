"""Names of the phases of an export, in order."""

from typing import Final

PHASES: Final = ("writing_model", "writing_report", "packing", "verifying", "publishing")
PUSHING: Final = "pushing"
"""After them, if the package is pushed to the hub."""


def phases_of(*, pushed: bool) -> tuple[str, ...]:
    """Returns the phases of an export that is pushed to the hub, or is not."""
    return (*PHASES, PUSHING) if pushed else PHASES
