"""Iteration over the pages of a list method."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from finetuneflow.transport import CallPolicy

_PAGE_SIZE = 100

R = TypeVar("R")


async def paged(
    transport: CallPolicy, method: Any, request: Any, items: str, limit: int | None, read: Callable[[Any], R]
) -> AsyncGenerator[R, None]:
    """Yields the elements of the field `items` of each page, converted by `read`, at most `limit` in total. Fetches
    each page when it is needed."""
    left = limit
    while left is None or left > 0:
        request.page_size = _PAGE_SIZE if left is None else min(left, _PAGE_SIZE)
        response = await transport.call(method, request)
        for item in getattr(response, items)[:left]:
            yield read(item)
        if left is not None:
            left -= len(getattr(response, items))
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token
