"""Limits on calls: how many that last run at once at a gateway, and how often each caller calls."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc

from chassis.errors import ResourceExhausted
from chassis.server.handler_wrapping import Context, Streaming, Unary, answer_of, wrapped
from chassis.server.tenant_shares import TenantShares
from gateway.access.callers import ANYBODY, Caller, current

_DRY_RUN: Final = "CreateFineTuningJob"
"""A question if it only validates."""
_MAX_CALLERS: Final = 10_000
"""Callers whose rate is known; the one that has called least recently is forgotten and starts anew."""


@dataclass(frozen=True)
class CallLimits:
    """Limits of one gateway."""

    max_watches: int = 2000
    max_uploads: int = 64
    max_uploads_per_tenant: int = 16
    max_downloads: int = 64
    max_questions: int = 64
    calls_per_second: float = 200.0
    call_burst: int = 1000


class Slots:
    """Slots for the calls of one kind; a call holds one until it ends."""

    def __init__(self, noun: str, reason: str, limit: int, tenant_limit: int | None = None) -> None:
        self._noun = noun
        self._reason = reason
        self._limit = limit
        self._tenant_limit = limit if tenant_limit is None else tenant_limit
        self._held: Counter[str] = Counter()

    @contextlib.contextmanager
    def slot(self, tenant: str) -> Iterator[None]:
        """Holds a slot for the block. Raises ResourceExhausted if none is free."""
        if self._held.total() >= self._limit:
            raise self._refusal(f"This gateway serves {self._limit:,} {self._noun} at once, its limit", self._limit)
        if self._held[tenant] >= self._tenant_limit:
            text = f"Your tenant has {self._tenant_limit:,} {self._noun} at this gateway, the limit of a tenant"
            raise self._refusal(text, self._tenant_limit)
        self._held[tenant] += 1
        try:
            yield
        finally:
            self._held[tenant] -= 1
            if not self._held[tenant]:
                del self._held[tenant]

    def _refusal(self, text: str, limit: int) -> ResourceExhausted:
        message = f"{text}. Try again when one has ended; the gateway's operator can raise the limit."
        return ResourceExhausted(self._reason, message, metadata={"limit": str(limit)})


class SharedSlots:
    """Slots of which each tenant is sure of a share; see `TenantShares`."""

    def __init__(self, noun: str, reason: str, limit: int) -> None:
        self._noun = noun
        self._reason = reason
        self._shares = TenantShares(limit)

    @contextlib.contextmanager
    def slot(self, tenant: str) -> Iterator[None]:
        """Holds a slot for the block. Raises ResourceExhausted if the tenant has its share and the limit is reached."""
        shares = self._shares
        if not shares.has_room(tenant):
            message = (
                f"Your tenant has {shares.held(tenant):,} {self._noun} at this gateway, its share of the limit of "
                f"{shares.limit:,}. Try again when one has ended; the gateway's operator can raise the limit."
            )
            metadata = {"limit": str(shares.limit), "share": str(shares.share(tenant)), "tenant": tenant}
            raise ResourceExhausted(self._reason, message, metadata=metadata)
        with shares.counted(tenant):
            yield


class CallRate:
    """A token bucket for each caller."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst
        self._buckets: dict[tuple[str, str, str], tuple[float, float]] = {}
        """Caller → (tokens left, when)."""

    def take(self, caller: Caller) -> None:
        """Counts a call. Raises ResourceExhausted for one too many."""
        key = (caller.key_id, caller.tenant, caller.subject)
        clock = time.monotonic()
        tokens, since = self._buckets.pop(key, (float(self._burst), clock))
        tokens = min(tokens + (clock - since) * self._per_second, self._burst)
        self._buckets[key] = (max(tokens - 1, 0.0) if tokens >= 1 else tokens, clock)
        if len(self._buckets) > _MAX_CALLERS:
            self._buckets.pop(next(iter(self._buckets)))
        if tokens < 1:
            raise ResourceExhausted(
                "TOO_MANY_CALLS",
                f"You call more often than {self._per_second:g} times a second, the limit of a caller at this gateway. "
                "Call less often, such as by a watch instead of repeated reads; the gateway's operator can raise the "
                "limit.",
                metadata={"calls_per_second": f"{self._per_second:g}"},
            )


class CallLimitInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in the stubs only
    """Counts calls. It stands behind the interceptor that sets the caller, and is not asked for health."""

    def __init__(self, limits: CallLimits) -> None:
        watches = Slots("watches", "TOO_MANY_WATCHES", limits.max_watches)
        uploads = Slots("uploads", "TOO_MANY_UPLOADS", limits.max_uploads, limits.max_uploads_per_tenant)
        downloads = Slots("downloads", "TOO_MANY_DOWNLOADS", limits.max_downloads)
        self._questions = SharedSlots(
            "calls that a probe or an evaluator answers", "TOO_MANY_QUESTIONS", limits.max_questions
        )
        self.kinds: dict[str, Slots | SharedSlots] = {
            "WatchFineTuningJob": watches,
            "WatchEvaluation": watches,
            "WatchExport": watches,
            "UploadDataset": uploads,
            "DownloadArtifact": downloads,
            "ValidateDataset": self._questions,
            "PreviewDataset": self._questions,
            "RecommendMethod": self._questions,
            "EstimateResources": self._questions,
            "PreflightFineTuningJob": self._questions,
            "Generate": self._questions,
        }
        """The slots of the methods that last, by name."""
        self._rate = CallRate(limits.calls_per_second, limits.call_burst)

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        service, _, name = handler_call_details.method.lstrip("/").partition("/")
        if handler is None or not service.startswith("finetuneflow."):
            return handler
        return wrapped(handler, partial(self._limit, name=name), partial(self._limit_stream, name=name))

    def _limit(self, behaviour: Callable[..., Any], *, name: str) -> Unary:
        async def call(request: Any, context: Context) -> Any:
            with self._counted(name, request):
                return await answer_of(behaviour, request, context)

        return call

    def _limit_stream(self, behaviour: Callable[..., Any], *, name: str) -> Streaming:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            with self._counted(name, request):
                async with contextlib.aclosing(behaviour(request, context)) as answers:
                    async for answer in answers:
                        yield answer

        return call

    @contextlib.contextmanager
    def _counted(self, name: str, request: Any) -> Iterator[None]:
        caller = current.get()
        # An insecure gateway cannot tell its callers apart: all would share one rate.
        if caller is not ANYBODY:
            self._rate.take(caller)
        dry_run = name == _DRY_RUN and request.validate_only
        slots = self._questions if dry_run else self.kinds.get(name)
        with contextlib.nullcontext() if slots is None else slots.slot(caller.tenant):
            yield
