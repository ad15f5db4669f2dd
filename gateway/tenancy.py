"""The tenant of a call, which decides on the rows and files it may read."""

from typing import Any

import grpc

DEFAULT_TENANT = "default"


def tenant_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Returns the caller's tenant. There is only one until callers authenticate; every query filters by it."""
    return DEFAULT_TENANT
