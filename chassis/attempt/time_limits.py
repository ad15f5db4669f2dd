"""Time limits and intervals of a stage worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chassis.child.child_process import LINGER_SECONDS


@dataclass(frozen=True)
class TimeLimits:
    """Intervals that the protocol between worker, child, gateway and store fixes.

    They fit together, so they are no settings; tests shorten them. What an operator may choose is in WorkerSettings.
    """

    heartbeat_seconds: float = 2.0
    """Longest time between two reports of a claim."""
    claim_answer_seconds: float = 2.0
    """Time that a claim waits for one gateway's answer."""
    claim_repeats_seconds: float = 8.0
    """Time for which an unanswered claim is repeated. Together with the wait for one more answer, it stays below the
    time that the broker waits for the work item's ack."""
    last_report_seconds: float = 5.0
    """Time for which a drained process tries to have its last events accepted."""
    disk_patience_seconds: float = 60.0
    """Time that an event waits for free disk space. The child blocks meanwhile, because its pipe fills up."""
    usage_sample_seconds: float = 2.0
    """Interval between two samples of a child's memory and processors."""
    usage_report_seconds: float = 30.0
    """Interval between two ResourceUsage events."""
    preparation_progress_seconds: float = 5.0
    """Shortest time between two events about progress within one phase of a preparation."""
    upload_retry_seconds: Sequence[float] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    """Delays between attempts to store what the result needs."""
    checkpoint_retry_seconds: Sequence[float] = (1.0, 2.0, 4.0)
    """Delays between attempts to store a checkpoint during a training: the next one is tried together with it."""
    child_linger_seconds: float = LINGER_SECONDS
