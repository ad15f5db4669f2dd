"""The entry point of the package."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from finetuneflow.artifacts import Artifacts
from finetuneflow.connection import Connection
from finetuneflow.datasets import Datasets
from finetuneflow.evaluations import Evaluations
from finetuneflow.exports import Exports
from finetuneflow.jobs import Jobs
from finetuneflow.models import Models
from finetuneflow.probe import Probe
from finetuneflow.recipes import Recipes
from finetuneflow.transport import Transport


class Client:
    """A connection to a FineTuneFlow server.

    `address` is host:port, `token` a bearer token, `ca` a PEM file with the server's certificate authority or
    `system`; each defaults to FTF_ADDRESS, FTF_TOKEN, FTF_CA, and the address in the end to 127.0.0.1:7460. Nothing
    is sent before the first call. Safe to share between threads; close it, or use it in a `with` statement.

    Every method raises an exception of `finetuneflow.errors`; ServerUnreachable where nothing answers.
    """

    def __init__(self, address: str | None = None, *, token: str | None = None, ca: str | None = None) -> None:
        transport = Transport(Connection.resolve(address, token, ca))
        self._transport = transport
        self.datasets = Datasets(transport)
        self.artifacts = Artifacts(transport)
        self.jobs = Jobs(transport, self.datasets, self.artifacts)
        self.models = Models(transport)
        self.evaluations = Evaluations(transport)
        self.exports = Exports(transport)
        self.recipes = Recipes(transport)
        self.probe = Probe(transport)

    @property
    def address(self) -> str:
        return self._transport.connection.address

    def close(self) -> None:
        """Closes the connection; calls under way end."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.address!r})"
