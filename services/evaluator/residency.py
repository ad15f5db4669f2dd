"""Decides which models are in memory, and answers requests with them.

Each model is in a child of its own: a base model with all adapters that can share it, a base model with one adapter
that cannot, or weights that a job trained as a whole. A model is loaded when it is first asked, if the free memory
allows; those that nobody uses make room, the longest idle first. After some idle time a model is unloaded anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import secrets
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from chassis.child.spare import Spare
from chassis.errors import NotFound, ResourceExhausted
from chassis.security.confinement import ChildLimits
from chassis.server.tenant_shares import TenantShares
from chassis.store.artifact_store import ArtifactMissing, ArtifactStore
from chassis.store.plain_files import delete_tree
from engine.catalogue import Catalogue, LocalModel
from engine.config.job import Quantization
from engine.config.spec_proto import spec_to_dict
from engine.errors import JobError, Violation
from engine.hub_cache import FolderLock, ModelUses
from engine.model_names import model_reference
from engine.random_reference import RandomReference
from finetuneflow.v1.evaluator_service_pb2 import GenerateRequest, GenerateResponse, ServedModel
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from services.child_input import ModelFiles
from services.evaluator.answer_requests import ask_of, check_request
from services.evaluator.checkpoint_cache import CheckpointCache
from services.evaluator.resident.messages import Reply, ResidentInput
from services.evaluator.resident_process import Resident
from services.evaluator.settings import EvaluatorSettings
from services.hardware import read_hardware
from services.hub_access import every_callers_access

_log = logging.getLogger(__name__)

_PROCESS_BYTES: Final = 700 << 20
"""Memory of a child beside its weights: its libraries, and caches of keys and values for some answers."""
_SHARE_FOR_WORK: Final = 1.15
"""Factor for what the computation needs beside the weights."""
_RETRY_SECONDS: Final = 10
"""When a caller who was refused should ask again."""
_MAX_KNOWN_DATA: Final = 4096

Put = Callable[[GenerateResponse], None]


@dataclass(eq=False)
class _Place:
    """A model that is in memory or being loaded."""

    key: str
    model_id: str
    """Name of the model that the node publishes."""
    loaded: asyncio.Future[Resident]
    num_claims: int = 0
    """Calls that use it or wait for it. It is not unloaded meanwhile."""
    last_use: float = field(default_factory=time.monotonic)
    life: asyncio.Task[None] | None = None
    """Loads the model and waits for its end. To cancel it is to unload the model."""
    unloading: asyncio.TimerHandle | None = None

    @property
    def in_memory(self) -> bool:
        return self.loaded.done() and not self.loaded.cancelled() and self.loaded.exception() is None


class Residency:
    """The models that this process holds in memory."""

    def __init__(self, settings: EvaluatorSettings, catalogue: Catalogue) -> None:
        self._settings, self._catalogue = settings, catalogue
        self._hub = every_callers_access(settings)
        self._store = ArtifactStore(settings.artifacts)
        self._lock, self._folder = _own_folder(settings.home / "work" / "residents")
        self._checkpoints = CheckpointCache(self._folder / "checkpoints", settings.kept_checkpoint_bytes)
        limits = ChildLimits(settings.child_file_bytes, settings.child_memory_bytes)
        self._spare = Spare(None, self._folder, limits=limits)
        self._places: dict[str, _Place] = {}
        self._admission = asyncio.Lock()
        self._shares = TenantShares(settings.max_answers)
        self._names = itertools.count(1)
        self._conversations: dict[str, bool] = {}
        """Manifest of token shards → True if their rows are conversations."""
        self._lives: set[asyncio.Task[None]] = set()

    def warm_models(self) -> list[str]:
        """Returns the models that are in memory, as nodes publish them."""
        return sorted({place.model_id for place in self._places.values() if place.in_memory})

    async def answers(self, request: GenerateRequest) -> AsyncGenerator[GenerateResponse, None]:
        """Yields the phases and the parts of an answer. When it is closed, the answer ends at once.

        Raises InvalidArgument, ResourceExhausted (TOO_MANY_ANSWERS, NO_MEMORY_FOR_MODEL), NotFound, Unavailable
        (GENERATION_LOST), JobError, and what `Catalogue.fetch` raises.
        """
        check_request(request)
        tenant, shares = request.served_model.tenant, self._shares
        if not shares.has_room(tenant):
            message = (
                f"{shares.held(tenant):,} answers of your tenant {tenant!r} are being generated or wait at this "
                f"evaluator, its share of the limit of {shares.limit:,}."
            )
            raise _exhausted("TOO_MANY_ANSWERS", message, tenant=tenant, share=str(shares.share(tenant)))
        responses: asyncio.Queue[GenerateResponse | None] = asyncio.Queue()
        answering = asyncio.create_task(self._answer(request, responses.put_nowait), name="answer")
        answering.add_done_callback(lambda _: responses.put_nowait(None))
        with shares.counted(tenant):
            try:
                while (response := await responses.get()) is not None:
                    yield response
                answering.result()
            finally:
                answering.cancel()
                await asyncio.wait({answering})

    async def close(self) -> None:
        """Unloads all models."""
        for place in list(self._places.values()):
            self._unload(place)
        if self._lives:
            await asyncio.wait(self._lives)
        await asyncio.to_thread(delete_tree, self._folder)
        self._lock.close()

    async def _answer(self, request: GenerateRequest, put: Put) -> None:
        began = time.monotonic()
        served = request.served_model
        say = _Phases(put)
        as_conversation = await self._asks_in_conversations(served)
        async with self._claimed(served, say) as resident:
            adapter = await self._adapter(served, resident, say)
            ask = ask_of(request, adapter, as_conversation=as_conversation)
            first = 0.0
            async with contextlib.aclosing(resident.answer(ask)) as replies:
                async for reply in replies:
                    if reply.queued:
                        say("queued")
                        continue
                    first = first or time.monotonic() - began
                    if response := _response(reply, first):
                        put(response)

    async def _asks_in_conversations(self, served: ServedModel) -> bool:
        """Returns False if the model was trained on plain text."""
        manifest = served.shards_manifest_sha256
        if not served.shards_path:
            return True
        if manifest not in self._conversations:
            file = self._folder / f"prepared-{secrets.token_hex(8)}.json"
            path = f"{served.tenant}/{served.shards_path}"
            try:
                await asyncio.to_thread(self._store.get_file_of_folder, path, "prepared.json", file, manifest)
                prepared = json.loads(await asyncio.to_thread(file.read_bytes))
            except ArtifactMissing as error:
                raise NotFound("CHECKPOINT_NOT_FOUND", "The token shards of the model's job are gone.") from error
            finally:
                file.unlink(missing_ok=True)
            if len(self._conversations) >= _MAX_KNOWN_DATA:
                self._conversations.clear()
            self._conversations[manifest] = bool(prepared["has_chat"])
        return self._conversations[manifest]

    async def _adapter(self, served: ServedModel, resident: Resident, say: _Phases) -> Path | None:
        """Returns the folder of the adapter, where the child can read it; None for a model without one."""
        if served.full or not served.checkpoint_path:
            return None
        folder = resident.adapters / served.checkpoint_manifest_sha256
        if not folder.exists():
            say("fetching_checkpoint")
            await self._fetch_checkpoint(served, folder)
        return folder

    async def _fetch_checkpoint(self, served: ServedModel, folder: Path) -> None:
        path, manifest = f"{served.tenant}/{served.checkpoint_path}", served.checkpoint_manifest_sha256
        try:
            await asyncio.to_thread(self._checkpoints.link, self._store, path, manifest, folder)
        except ArtifactMissing as error:
            message = f"The checkpoint of step {served.checkpoint_step} is no longer in the artifact store."
            raise NotFound("CHECKPOINT_NOT_FOUND", message) from error

    @contextlib.asynccontextmanager
    async def _claimed(self, served: ServedModel, say: _Phases) -> AsyncIterator[Resident]:
        """Yields the child with the model, which is not unloaded in the block; loads it if necessary."""
        known = served.base_model.weights_sha256
        place = self._places.get(_key(served, known)) if known else None
        if place is None:
            if served.base_model.id not in self.warm_models():
                say("fetching_model")
            uses = ModelUses()
            try:
                model = await self._fetch_model(served, uses)
                key = _key(served, model.weights_sha256)
                place = self._places.get(key)
                if place is None:
                    place = self._new_place(key, served, model, uses)
                    # The place closes it when the model is unloaded.
                    uses = ModelUses()
            finally:
                uses.close()
        self._claim(place)
        try:
            if not place.loaded.done():
                say("queued" if self._admission.locked() else "loading_model")
            yield await asyncio.shield(place.loaded)
        finally:
            self._release(place)

    def _claim(self, place: _Place) -> None:
        place.num_claims += 1
        if place.unloading:
            place.unloading.cancel()

    def _release(self, place: _Place) -> None:
        place.num_claims -= 1
        place.last_use = time.monotonic()
        if place.num_claims:
            return
        if place.loaded.done():
            idle = self._settings.idle_seconds
            place.unloading = asyncio.get_running_loop().call_later(idle, self._unload, place)
        else:
            # All who waited have left.
            self._unload(place)

    def _unload(self, place: _Place) -> None:
        if self._places.get(place.key) is place:
            del self._places[place.key]
        assert place.life is not None  # noqa: S101
        place.life.cancel()

    async def _fetch_model(self, served: ServedModel, uses: ModelUses) -> ModelFiles:
        wanted = served.base_model
        found = await asyncio.to_thread(self._fetch, served, uses)
        if wanted.weights_sha256 not in ("", found.weights_sha256):
            message = f"The weights of {wanted.id} on this node differ from those that the model was trained on."
            advice = "Ask the operator to put back the files of that time."
            raise JobError("BASE_MODEL_CHANGED", message, advice, [Violation("model", message)])
        return ModelFiles(**vars(found))

    def _fetch(self, served: ServedModel, uses: ModelUses) -> LocalModel:
        wanted = served.base_model
        name, named = model_reference(wanted.id, wanted.revision), RandomReference.parse(wanted.id)
        with tempfile.TemporaryDirectory(prefix="tokenizer-", dir=self._folder) as folder:
            tokenizer = None
            if named and named.corpus_sha256 and wanted.tokenizer_path:
                tokenizer = Path(folder, "tokenizer.json")
                path = f"{served.tenant}/{wanted.tokenizer_path}"
                self._store.get_file(path, tokenizer, named.corpus_sha256)
            return self._catalogue.fetch(name, self._hub.token, uses=uses, tokenizer=tokenizer)

    def _new_place(self, key: str, served: ServedModel, model: ModelFiles, uses: ModelUses) -> _Place:
        """Begins to load a model."""
        name = served.checkpoint_manifest_sha256 if served.full or served.exclusive else served.base_model.id
        place = self._places[key] = _Place(key, name, asyncio.get_running_loop().create_future())
        life = place.life = asyncio.create_task(self._live(place, served, model, uses), name=f"model-{name}")
        self._lives.add(life)
        life.add_done_callback(self._lives.discard)
        return place

    async def _live(self, place: _Place, served: ServedModel, model: ModelFiles, uses: ModelUses) -> None:
        folder = self._folder / f"resident-{next(self._names)}"
        folder.mkdir()
        resident = None
        try:
            weights = model.path
            if served.full:
                weights = folder / "weights"
                await self._fetch_checkpoint(served, weights)
            async with self._admission:
                gpus = await self._make_room(model)
                child_input = ResidentInput(
                    out_dir=folder / "out",
                    model=model,
                    weights_dir=weights,
                    quantization=_quantization(served),
                    asks_dir=folder / "asks",
                    threads=self._settings.child_threads,
                )
                resident = await Resident.start(self._settings, self._spare, child_input, folder, gpus=gpus)
                await resident.wait_until_loaded(self._settings.loading_stall_seconds)
            _log.info("%s is in memory, in process %d", place.model_id, resident.pid)
            place.loaded.set_result(resident)
            await resident.wait()
        except Exception as error:  # noqa: BLE001 - it becomes the error of the calls that wait
            if not place.loaded.done():
                place.loaded.set_exception(error)
                # Nobody may be waiting for it.
                place.loaded.exception()
        finally:
            place.loaded.cancel()
            if self._places.get(place.key) is place:
                del self._places[place.key]
            if place.unloading:
                place.unloading.cancel()
            await self._end(resident, folder, uses)

    async def _end(self, resident: Resident | None, folder: Path, uses: ModelUses) -> None:
        if resident:
            resident.kill("the evaluator unloaded the model")
            await resident.wait()
        await asyncio.to_thread(delete_tree, folder)
        uses.close()

    async def _make_room(self, model: ModelFiles) -> int:
        """Unloads idle models until this one fits. Returns the number of GPUs that it gets. ResourceExhausted."""
        while True:
            hardware = await asyncio.to_thread(read_hardware, "", self._folder)
            if hardware.cuda_available:
                # In 16 bits; where there is room for it, the child uses 32.
                free, needed = hardware.gpus[0].memory_free_bytes, 2 * model.num_parameters
            else:
                free, needed = hardware.memory_available_bytes, 4 * model.num_parameters + _PROCESS_BYTES
            needed = int(needed * _SHARE_FOR_WORK)
            if free >= needed:
                return int(hardware.cuda_available)
            idle = [place for place in self._places.values() if place.in_memory and not place.num_claims]
            if not idle:
                message = (
                    f"{model.id} needs about {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free "
                    "beside the models in use."
                )
                raise _exhausted("NO_MEMORY_FOR_MODEL", message)
            longest_idle = min(idle, key=lambda place: place.last_use)
            _log.info("%s is unloaded to make room for %s", longest_idle.model_id, model.id)
            self._unload(longest_idle)
            assert longest_idle.life is not None  # noqa: S101
            await asyncio.wait({longest_idle.life})


class _Phases:
    """Sends the phases of one call, each when it changes."""

    def __init__(self, put: Put) -> None:
        self._put, self._last = put, ""

    def __call__(self, phase: str) -> None:
        if phase != self._last:
            self._last = phase
            self._put(GenerateResponse(phase=phase))


def _key(served: ServedModel, weights_sha256: str) -> str:
    """Returns what the models that share a child have in common."""
    if served.full:
        return served.checkpoint_manifest_sha256
    key = weights_sha256
    if served.HasField("quantization"):
        key += f"-{served.quantization.SerializeToString(deterministic=True).hex()}"
    if served.exclusive:
        key += f"-{served.checkpoint_manifest_sha256}"
    return key


def _quantization(served: ServedModel) -> Quantization | None:
    if not served.HasField("quantization"):
        return None
    spec = FineTuningJobSpec(quantization=served.quantization)
    return Quantization.model_validate(spec_to_dict(spec)["quantization"])


def _response(reply: Reply, first_token_seconds: float) -> GenerateResponse | None:
    """Returns the response for a part of an answer; None for one that says nothing to a caller."""
    response = GenerateResponse(text=reply.text, finish_reason=reply.finish_reason)
    for id_, token, logprob in reply.logprobs:
        response.logprobs.add(id=id_, token=token, logprob=logprob)
    if reply.finish_reason:
        response.usage.prompt_tokens = reply.prompt_tokens
        response.usage.completion_tokens = reply.completion_tokens
        response.usage.time_to_first_token_seconds = first_token_seconds
    return response if response.ByteSize() else None


def _exhausted(reason: str, message: str, **metadata: str) -> ResourceExhausted:
    hint = f"Ask again in {_RETRY_SECONDS} seconds."
    return ResourceExhausted(reason, f"{message} {hint}", metadata=metadata | {"retry_seconds": str(_RETRY_SECONDS)})


def _own_folder(parent: Path) -> tuple[FolderLock, Path]:
    """Returns a new folder with its lock, after the folders of processes that have ended were deleted."""
    parent.mkdir(parents=True, exist_ok=True)
    for entry in [entry for entry in parent.iterdir() if entry.is_dir()]:
        lock = FolderLock(entry)
        if lock.try_exclude():
            delete_tree(entry)
        lock.close()
    folder = parent / secrets.token_hex(8)
    # Before the folder exists, so that nobody takes it for a leftover.
    lock = FolderLock(folder)
    lock.share()
    folder.mkdir()
    return lock, folder
