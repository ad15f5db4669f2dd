"""Runs the queries of a serving probe, each in a child process of its own.

A child reads rows and loads a tokenizer, which the serving process never does.
"""

import asyncio
import contextlib
import logging
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from google.protobuf.message import Message

from chassis.child.child_process import ChildCommand
from chassis.child.query import read_reply
from chassis.child.spare import Spare, SpareCommand
from chassis.errors import Internal, InvalidArgument, NotFound
from chassis.security.confinement import ChildLimits
from chassis.store.artifact_store import ArtifactMissing, ArtifactStore
from chassis.store.plain_files import delete_tree
from engine.catalogue import Catalogue
from engine.hub_cache import ModelUses
from finetuneflow.v1.dataset_pb2 import Dataset
from services.attempt_inputs import child_environment
from services.hub_access import every_callers_access
from services.path_fields import dataset_violations, described, tenant_violations
from services.probe.dataset_cache import DatasetCache, sweep
from services.probe.queries.fair_slots import FairSlots
from services.probe.queries.fetch import fetch
from services.probe.queries.query import ProbeQuery
from services.probe.settings import ProbeSettings

_log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
_PROGRAM: Final = (sys.executable, "-m", "services.probe.queries")
_MAX_CHILDREN: Final = 2
"""Number of children that run at the same time; further queries wait."""


class ServedQueries:
    """Runs queries. After the first one, a spare child waits with its imports done."""

    def __init__(self, settings: ProbeSettings, catalogue: Catalogue) -> None:
        self._settings, self._catalogue = settings, catalogue
        self._hub = every_callers_access(settings)
        self._store = ArtifactStore(settings.artifacts)
        self._folder = settings.home / "work" / "queries"
        self._folder.mkdir(parents=True, exist_ok=True)
        sweep(self._folder)
        self._datasets = DatasetCache(settings.home / "work" / "datasets", settings.kept_dataset_bytes)
        self._slots = FairSlots(_MAX_CHILDREN, settings.max_waiting_queries)
        self._env = child_environment(settings)
        self._spare = Spare(
            SpareCommand(_PROGRAM, self._env) if settings.warm_spare else None,
            self._folder,
            limits=ChildLimits(settings.child_file_bytes, settings.child_memory_bytes),
        )

    async def run(self, method: str, request: Message, tenant: str, datasets: Mapping[str, Dataset], response: M) -> M:
        """Returns `response`, filled by a child.

        `datasets` are the tenant's uploaded datasets by their names in the request. Raises InvalidArgument for a tenant
        or dataset that cannot be part of a path, ResourceExhausted if too many queries of the tenant wait, NotFound for
        a dataset whose file is missing, what `fetch` raises, and what `read_reply` raises.
        """
        if datasets:
            _refuse_paths(tenant, request, datasets.values())
        async with self._slots.taken(tenant), self._temporary_folder() as folder:
            files = {
                name: await self._fetch_dataset(tenant, dataset, folder / "sources" / str(index))
                for index, (name, dataset) in enumerate(datasets.items())
            }
            query = ProbeQuery.of(folder, method, request, files)
            with ModelUses() as uses:
                query = await asyncio.to_thread(fetch, query, self._settings, self._catalogue, self._hub, uses)
                return await self._run(query, folder, response)

    async def close(self) -> None:
        """Ends the spare child."""
        await self._spare.close()

    @contextlib.asynccontextmanager
    async def _temporary_folder(self) -> AsyncIterator[Path]:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            yield folder
        finally:
            await asyncio.to_thread(delete_tree, folder)

    async def _fetch_dataset(self, tenant: str, dataset: Dataset, folder: Path) -> Path:
        """Returns the dataset's file, under the name with which it was uploaded."""
        file = folder / dataset.filename
        try:
            await asyncio.to_thread(self._datasets.link, self._store, f"{tenant}/{dataset.path}", dataset.sha256, file)
        except ArtifactMissing as error:
            message = f"The file of dataset {dataset.id} is not in the artifact store."
            raise NotFound("DATASET_NOT_FOUND", message) from error
        return file

    async def _run(self, query: ProbeQuery, folder: Path, response: M) -> M:
        reads = [path for path in (query.provided.model.path, self._settings.prices) if path]
        argv = [*_PROGRAM, str(query.write(folder))]
        command = ChildCommand(argv, query.out_dir, self._env, on_cpu=True, reads=reads)
        child = await self._spare.start(command, folder)
        try:
            async for _ in child.frames():
                pass
            status, last_lines = await child.wait(), child.last_lines()
        finally:
            child.close()
            # Only from here on: a spare that imports beside a running child would compete for the same processors,
            # and a probe that gets no queries keeps no spare.
            self._spare.open()
        try:
            return read_reply(query.out_dir, response, status, last_lines, self._settings.query_limits.deaths())
        except Internal:
            _log.exception("a query's child ended without a reply")
            raise


def _refuse_paths(tenant: str, request: Message, datasets: Iterable[Dataset]) -> None:
    listed = any(field.name == "datasets" for field in request.DESCRIPTOR.fields)
    found = tenant_violations(tenant, "tenant")
    for index, dataset in enumerate(datasets):
        found += dataset_violations(dataset, f"datasets[{index}]" if listed else "dataset")
    if found:
        raise InvalidArgument("INVALID_REQUEST", described(found), found)
