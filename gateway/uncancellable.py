"""Calls that run to their end even if the caller is cancelled."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` to its end even if the caller is cancelled, then raises the cancellation.

    Clean-up code of the caller therefore finds nothing still in progress.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            # Retrieved, so that asyncio does not report it as lost; the caller gets the cancellation.
            task.exception()
        raise


async def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs a blocking function in a thread; returns, raises or is cancelled only once it has ended."""
    return await finished(asyncio.to_thread(function, *args, **kwargs))
