"""Whose rows and files a call may see."""

from typing import Any

import grpc

DEFAULT_TENANT = "default"


def tenant_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The caller's tenant. There is one until callers authenticate; every query asks all the same."""
    return DEFAULT_TENANT
