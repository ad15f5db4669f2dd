"""The synchronous face of code that is written with `await`.

    class Jobs:
        get = blocking(AsyncJobs.get)

A method of the asynchronous class runs on a BlockingTransport, on which nothing suspends: what it awaits has happened
when the await returns. So each coroutine runs to its end in one go, without an event loop and without a thread.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Blocking:
    """Base of a synchronous class; `_awaited` is the asynchronous object on a BlockingTransport."""

    def __init__(self, awaited: Any) -> None:
        self._awaited = awaited


def run(coroutine: Coroutine[Any, Any, R]) -> R:
    """The result of a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: R = done.value
        return result
    coroutine.close()
    raise RuntimeError("a coroutine on a BlockingTransport has suspended")


def blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Any, P], R]:
    """The method without `await`."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return run(method(self._awaited, *args, **kwargs))

    return call


def iterating(
    method: Callable[Concatenate[Any, P], AsyncGenerator[R, None]],
) -> Callable[Concatenate[Any, P], Generator[R, None, None]]:
    """The method for `for` in place of `async for`. Its arguments are checked at the call, as in `method`."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Generator[R, None, None]:
        return _iterate(method(self._awaited, *args, **kwargs))

    return call


def _iterate(items: AsyncGenerator[R, None]) -> Generator[R, None, None]:
    try:
        while True:
            try:
                item = run(_next(items))
            except StopAsyncIteration:
                return
            yield item
    finally:
        run(_close(items))


async def _next(items: AsyncGenerator[R, None]) -> R:
    return await anext(items)


async def _close(items: AsyncGenerator[R, None]) -> None:
    await items.aclose()
