"""Client and AsyncClient, the entry points of the package."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from finetuneflow.artifacts import Artifacts, AsyncArtifacts
from finetuneflow.audit import AsyncAudit, Audit
from finetuneflow.connection import Connection
from finetuneflow.datasets import AsyncDatasets, Datasets
from finetuneflow.evaluations import AsyncEvaluations, Evaluations
from finetuneflow.exports import AsyncExports, Exports
from finetuneflow.integrations import AsyncIntegrations, Integrations
from finetuneflow.jobs import AsyncJobs, Jobs
from finetuneflow.keys import AsyncKeys, Keys
from finetuneflow.models import AsyncModels, Models
from finetuneflow.probe import AsyncProbe, Probe
from finetuneflow.recipes import AsyncRecipes, Recipes
from finetuneflow.secrets import AsyncSecrets, Secrets
from finetuneflow.tenants import AsyncTenants, Tenants
from finetuneflow.transport import AioTransport, BlockingTransport


class Client:
    """A connection to a FineTuneFlow server.

    Nothing is sent before the first call. Thread-safe. Close the client, or use it in a `with` statement. Every method
    raises exceptions of `finetuneflow.errors`, and ServerUnreachable if no server answers.

    Args:
        address: host:port of a gateway, or of several gateways of one system separated by commas; if one is lost, calls
            and watches continue with the next. Default: FTF_ADDRESS, otherwise 127.0.0.1:7460.
        token: API key, or token of an identity provider. Default: FTF_TOKEN, otherwise what `ftf login` or `ftf up` has
            stored for the address, otherwise none.
        ca: PEM file with the server's certificate authority, its text, or `system` for the machine's own ones. Default:
            FTF_CA, otherwise what is stored for the address, otherwise none, and the connection is not encrypted.

    Raises:
        InvalidArgument: The address, the CA file or the file of stored credentials is invalid, or the token would be
            sent unencrypted.
    """

    def __init__(self, address: str | None = None, *, token: str | None = None, ca: str | None = None) -> None:
        self._connection = Connection.resolve(address, token, ca)
        self._transport = transport = BlockingTransport(self._connection)
        datasets, artifacts = AsyncDatasets(transport), AsyncArtifacts(transport)
        self.datasets = Datasets(datasets)
        self.artifacts = Artifacts(artifacts)
        self.jobs = Jobs(AsyncJobs(transport, datasets, artifacts))
        self.models = Models(AsyncModels(transport))
        self.evaluations = Evaluations(AsyncEvaluations(transport, datasets))
        self.exports = Exports(AsyncExports(transport, artifacts))
        self.integrations = Integrations(AsyncIntegrations(transport))
        self.recipes = Recipes(AsyncRecipes(transport))
        self.secrets = Secrets(AsyncSecrets(transport))
        self.probe = Probe(AsyncProbe(transport))
        self.keys = Keys(AsyncKeys(transport))
        self.tenants = Tenants(AsyncTenants(transport))
        self.audit = Audit(AsyncAudit(transport))

    @property
    def address(self) -> str:
        """The address or addresses of the server."""
        return self._connection.address

    def close(self) -> None:
        """Closes the connection and ends running calls."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.address!r})"


class AsyncClient:
    """The Client for an event loop: the same methods, awaited, and lists and watches for `async for`.

    Use it on one event loop, which need not run yet when the client is created. Files are read, hashed and written in
    threads, which also call `progress`.

    Args:
        address: As for Client.
        token: As for Client.
        ca: As for Client.

    Raises:
        InvalidArgument: As for Client.
    """

    def __init__(self, address: str | None = None, *, token: str | None = None, ca: str | None = None) -> None:
        self._connection = Connection.resolve(address, token, ca)
        self._transport = transport = AioTransport(self._connection)
        self.datasets = AsyncDatasets(transport)
        self.artifacts = AsyncArtifacts(transport)
        self.jobs = AsyncJobs(transport, self.datasets, self.artifacts)
        self.models = AsyncModels(transport)
        self.evaluations = AsyncEvaluations(transport, self.datasets)
        self.exports = AsyncExports(transport, self.artifacts)
        self.integrations = AsyncIntegrations(transport)
        self.recipes = AsyncRecipes(transport)
        self.secrets = AsyncSecrets(transport)
        self.probe = AsyncProbe(transport)
        self.keys = AsyncKeys(transport)
        self.tenants = AsyncTenants(transport)
        self.audit = AsyncAudit(transport)

    @property
    def address(self) -> str:
        """The address or addresses of the server."""
        return self._connection.address

    async def close(self) -> None:
        """Closes the connection and ends running calls."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.address!r})"
