"""Lists that page by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from google.protobuf.message import Message

from finetuneflow.transport import Transport

_PAGE_SIZE = 100


def pages(transport: Transport, method: Any, request: Any, items: str, limit: int | None) -> Iterator[Message]:
    """Yields what the field `items` of each page holds, at most `limit` in all; the next page is read when needed."""
    left = limit
    while left is None or left > 0:
        request.page_size = _PAGE_SIZE if left is None else min(left, _PAGE_SIZE)
        response = transport.call(method, request)
        page = getattr(response, items)
        yield from page if left is None else page[:left]
        if left is not None:
            left -= len(page)
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token
