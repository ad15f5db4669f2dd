"""Shares of tenants in a number of calls that a process serves at once."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator


class TenantShares:
    """Counts the calls of each tenant. A tenant may use the whole limit while no other needs it, and is always admitted
    below its share: the limit divided by the number of tenants with calls, at least 1.

    Since calls that run are not ended, a tenant that comes while the limit is used up is admitted above it: n tenants
    have at most limit × (1 + 1/2 + … + 1/n) calls, or one each.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: Counter[str] = Counter()

    def held(self, tenant: str) -> int:
        """Returns the number of calls of a tenant."""
        return self._held[tenant]

    def share(self, tenant: str) -> int:
        """Returns the number of calls up to which the tenant is admitted in any case."""
        return max(self.limit // len({*self._held, tenant}), 1)

    def has_room(self, tenant: str) -> bool:
        """Returns True if the tenant may have one more call."""
        return self._held.total() < self.limit or self._held[tenant] < self.share(tenant)

    @contextlib.contextmanager
    def counted(self, tenant: str) -> Iterator[None]:
        """Counts a call of the tenant during the block."""
        self._held[tenant] += 1
        try:
            yield
        finally:
            self._held[tenant] -= 1
            if not self._held[tenant]:
                del self._held[tenant]
