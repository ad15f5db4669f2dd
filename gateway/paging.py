"""Pages of a list: up to `page_size` rows after a cursor that is opaque to callers."""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from chassis.errors import InvalidArgument, Violation

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

Row = TypeVar("Row")


class PagedRequest(Protocol):
    """A request with the two paging fields."""

    @property
    def page_size(self) -> int: ...
    @property
    def page_token(self) -> str: ...


@dataclass(frozen=True)
class Page:
    """A requested page: up to `size` rows after the row with key `after` ("": from the start)."""

    size: int
    after: str
    scope: tuple[str, ...]

    @property
    def limit(self) -> int:
        """Number of rows to query: one more than the page, which tells if another page follows."""
        return self.size + 1

    def cut(self, rows: Sequence[Row], key: Callable[[Row], str]) -> tuple[Sequence[Row], str]:
        """Returns the page from up to `limit` rows, and its next_page_token."""
        page = rows[: self.size]
        return page, self.token(key(page[-1])) if len(rows) > self.size else ""

    def token(self, after: str) -> str:
        """Returns the token of the page after the row with that key."""
        return _encode((*self.scope, after))


def page_of(request: PagedRequest, *scope: str) -> Page:
    """Reads the paging fields. Raises InvalidArgument for an invalid token.

    `scope` is the list's name and its filters: a token of another list or of other filters would silently skip rows, so
    it is refused.
    """
    if not 0 <= request.page_size <= MAX_PAGE_SIZE:
        problem = f"is {request.page_size}; it must be from 1 to {MAX_PAGE_SIZE:,}; 0 means {DEFAULT_PAGE_SIZE}"
        raise InvalidArgument("INVALID_PAGE_SIZE", f"page_size {problem}.", [Violation("page_size", problem)])
    after = ""
    if request.page_token:
        *made_for, after = _decode(request.page_token)
        if tuple(made_for) != scope:
            raise bad_token("it was made for another list or another filter")
    return Page(request.page_size or DEFAULT_PAGE_SIZE, after, scope)


def _encode(parts: tuple[str, ...]) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts, separators=(",", ":")).encode()).decode()


def _decode(token: str) -> list[str]:
    try:
        parts = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
        "".join(parts).encode()
    except (binascii.Error, ValueError, RecursionError, TypeError):
        parts = None
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
        raise bad_token("it is not the next_page_token of an earlier answer")
    return parts


def bad_token(why: str) -> InvalidArgument:
    """The error for a page_token that cannot be used."""
    return InvalidArgument("INVALID_PAGE_TOKEN", f"page_token is invalid: {why}.", [Violation("page_token", why)])
