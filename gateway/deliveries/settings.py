"""Settings of a delivery process: those of the gateways, `FTF_GATEWAY_<KEY>`, and its own."""

from __future__ import annotations

from pydantic import Field

from gateway.deliveries.delivery import RetrySchedule
from gateway.settings import GatewaySettings


class DeliverySettings(GatewaySettings):
    """A delivery process needs the database, the broker's user, the keys of secrets and the store of the gateways."""

    deliveries_listen: str = "127.0.0.1:0"
    """host:port of the gRPC server, which serves nothing but health."""
    deliveries_metrics: str = ""
    """host:port on which metrics are served for Prometheus; "": not served."""
    deliveries_lease_seconds: float = Field(default=15.0, gt=0)
    """The deliveries of a process whose beat has stopped for longer are taken over."""
    deliveries_max: int = Field(default=1000, ge=1)
    """Maximum number of deliveries at once of this process."""
    deliveries_timeout_seconds: float = Field(default=15.0, gt=0)
    """A request that is not answered for longer has failed."""
    deliveries_retry_seconds: float = Field(default=5.0, gt=0)
    """Delay after the first failure; it doubles with each further one, up to an hour."""
    deliveries_attempts: int = Field(default=20, ge=1)
    """Failures in a row after which a delivery is given up."""

    @property
    def schedule(self) -> RetrySchedule:
        return RetrySchedule(first_seconds=self.deliveries_retry_seconds, attempts=self.deliveries_attempts)
