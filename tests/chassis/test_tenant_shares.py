"""Shares of tenants in a limit."""

import contextlib

import pytest

from chassis.server.tenant_shares import TenantShares


@pytest.fixture
def calls() -> "contextlib.ExitStack":
    return contextlib.ExitStack()


def admitted(shares: TenantShares, calls: contextlib.ExitStack, tenant: str) -> int:
    """Begins as many calls as the tenant may have; returns their number."""
    number = 0
    while shares.has_room(tenant):
        calls.enter_context(shares.counted(tenant))
        number += 1
    return number


def test_one_tenant_has_all_and_each_other_its_share(calls: contextlib.ExitStack) -> None:
    """A machine with one tenant must not stand idle, and a tenant that comes later must not be kept out."""
    shares = TenantShares(12)
    assert [admitted(shares, calls, tenant) for tenant in "abcd"] == [12, 6, 4, 3]
    assert not any(shares.has_room(tenant) for tenant in "abcd")
    calls.close()
    assert shares.has_room("a") and shares.held("a") == 0 and shares.share("b") == 12


def test_every_tenant_has_at_least_one(calls: contextlib.ExitStack) -> None:
    shares = TenantShares(2)
    assert [admitted(shares, calls, tenant) for tenant in "abcde"] == [2, 1, 1, 1, 1]


def test_what_a_tenant_does_not_use_is_left_to_others(calls: contextlib.ExitStack) -> None:
    shares = TenantShares(10)
    calls.enter_context(shares.counted("quiet"))
    assert admitted(shares, calls, "busy") == 9
    assert shares.has_room("quiet")
