"""Limits of one query or preflight: processor time, tokens and bytes of its token shards."""

import resource
import signal
import time
from typing import Final

from pydantic import BaseModel, ConfigDict

from engine.data.template_limits import CPU_LIMIT, killed_by_template, limited_time
from engine.data.tokenizer_limit import ABORTED, TOKENIZER_LIMIT, aborted_tokenizer, endless_tokenizer
from engine.errors import JobError, LimitExceeded

_GRACE_SECONDS: Final = 30.0
"""Processor time after the limit until the kernel ends a process that has not looked at it."""
PROCESSOR_LIMIT = signal.SIGXCPU
"""The signal that ends a process behind its limit of processor time."""
_ADVICE: Final = "Use fewer rows, or simplify templates."


class WorkLimits(BaseModel):
    """The limits; None means none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template_seconds: float | None = None
    """Processor time of templates, beside a millisecond per row, in each process of the work."""
    processor_seconds: float | None = None
    """Processor time of all processes of the work together."""
    processor_setting: str = "FTF_PROBE_MAX_QUERY_SECONDS"
    """The setting that `processor_seconds` comes from."""
    tokens: int | None = None
    """Tokens of all rows, with the repetitions that `weight` asks for."""
    shard_bytes: int | None = None

    def apply(self) -> None:
        """Sets the limits of seconds for this process. The processes that it starts inherit that of the kernel, which
        ends a process that does not look at the limit: it is the limit of each for itself."""
        if self.template_seconds is not None:
            limited_time.total_seconds = self.template_seconds
        if self.processor_seconds is not None:
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            allowed = int(time.process_time() + self.processor_seconds + _GRACE_SECONDS)
            if hard != resource.RLIM_INFINITY:
                allowed = min(allowed, hard)
            resource.setrlimit(resource.RLIMIT_CPU, (allowed, hard))
            # The signal would otherwise write the process's memory to the disk.
            resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))

    def check_processor_time(self, running_seconds: float = 0.0) -> None:
        """Raises LimitExceeded("PROCESSOR_TIME_EXCEEDED") if this process and those that it started have used more than
        the limit. `running_seconds` is the time of those that still run."""
        if self.processor_seconds is None:
            return
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        if time.process_time() + ended.ru_utime + ended.ru_stime + running_seconds > self.processor_seconds:
            raise self._too_long()

    def check_size(self, num_tokens: int, num_bytes: int) -> None:
        """Raises LimitExceeded: TOO_MANY_TOKENS, SHARDS_TOO_LARGE."""
        advice = "Use fewer rows, or lower their weight."
        if self.tokens is not None and num_tokens > self.tokens:
            message = f"The rows have more than {self.tokens:,} tokens, the limit."
            raise LimitExceeded("TOO_MANY_TOKENS", message, advice, "FTF_PROBE_MAX_TOKENS")
        if self.shard_bytes is not None and num_bytes > self.shard_bytes:
            message = f"The token shards have more than {self.shard_bytes:,} bytes, the limit."
            raise LimitExceeded("SHARDS_TOO_LARGE", message, advice, "FTF_PROBE_MAX_SHARD_BYTES")

    def _too_long(self) -> LimitExceeded:
        limit = "allowed" if self.processor_seconds is None else f"{self.processor_seconds:,g} seconds, the limit"
        message = f"The work took more processor time than {limit}."
        return LimitExceeded("PROCESSOR_TIME_EXCEEDED", message, _ADVICE, self.processor_setting)

    def deaths(self) -> dict[int, JobError]:
        """Returns the error for each exit status with which a limit ends a process."""
        return {
            -CPU_LIMIT: killed_by_template(),
            -TOKENIZER_LIMIT: endless_tokenizer(),
            ABORTED: aborted_tokenizer(),
            -PROCESSOR_LIMIT: self._too_long(),
        }
