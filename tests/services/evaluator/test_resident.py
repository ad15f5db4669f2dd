"""Models in memory and their answers: a real child with a random Llama and two adapters."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
import torch

from chassis.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from engine.config.job import Lora
from engine.data.tokenizer import Tokenizer
from engine.errors import JobError
from engine.model import load
from engine.model.adapter import attach_lora, load_adapter
from engine.model.generate import generate
from finetuneflow.v1.evaluator_service_pb2 import GenerateRequest, GenerateResponse, ServedModel
from finetuneflow.v1.hardware_pb2 import Hardware
from finetuneflow.v1.stage_result_pb2 import BaseModelIdentity
from services.evaluator.residency import Residency
from services.evaluator.settings import EvaluatorSettings
from services.questions import conversation_ids
from tests.tiny_models import make_tiny_model

TENANT = "acme"


@dataclass
class Trained:
    """A base model and the adapters of two jobs."""

    folder: Path
    adapters: list[Path]

    def expected(self, adapter: int | None, prompt: str, max_new_tokens: int, system: str = "") -> str:
        """The greedy answer of the model alone."""
        model = load.load_base(self.folder, dtype=torch.float32, on="cpu")
        if adapter is not None:
            model = load_adapter(model, self.adapters[adapter])
        tokenizer = Tokenizer(self.folder)
        ids = conversation_ids([{"role": "user", "content": prompt}], system, tokenizer)
        (answer,) = generate(model, [ids], max_new_tokens=max_new_tokens, stop_ids=sorted(tokenizer.special_ids))
        return tokenizer.decode(answer).rstrip("\ufffd")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    adapters = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        adapted = attach_lora(
            load.load_base(folder, dtype=torch.float32, on="cpu"), Lora(r=4),
            model_dir=folder, base_id="tiny", revision="local", quantised=False, gradient_checkpointing=False,
        )  # fmt: skip
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        adapters.append(tmp_path_factory.mktemp("adapter"))
        adapted.save_pretrained(str(adapters[-1]))
    return Trained(folder, adapters)


@dataclass
class Evaluator:
    """The part of an evaluator that answers."""

    residency: Residency
    manifests: list[str]
    home: Path

    def pids(self) -> set[int]:
        """Its resident children."""
        found = set()
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                if "services.evaluator.resident" in line and line[-1].startswith(str(self.home)):
                    found.add(process.pid)
        return found

    def ask(
        self, prompt: str, adapter: int | None = None, *, tenant: str = TENANT, **fields: Any
    ) -> AsyncGenerator[GenerateResponse, None]:
        served = ServedModel(tenant=tenant, base_model=BaseModelIdentity(id="tiny", revision="local"))
        if adapter is not None:
            served.checkpoint_path = f"jobs/{adapter}"
            served.checkpoint_manifest_sha256 = self.manifests[adapter]
        fields.setdefault("max_new_tokens", 24)
        if "messages" not in fields:
            fields["prompt"] = prompt
        return self.residency.answers(GenerateRequest(model="m", served_model=served, **fields))


@contextlib.asynccontextmanager
async def evaluator(trained: Trained, home: Path, **settings: Any) -> AsyncIterator[Evaluator]:
    values = EvaluatorSettings(home=home, models={"tiny": trained.folder}, insecure=True, threads=1, **settings)
    store = ArtifactStore(values.artifacts)
    manifests = [store.put_folder(folder, f"{TENANT}/jobs/{n}").sha256 for n, folder in enumerate(trained.adapters)]
    residency = Residency(values, Catalogue(home, values.models))
    try:
        yield Evaluator(residency, manifests, home)
    finally:
        await residency.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Evaluator]:
    """An evaluator for the tests that leave it as it is."""
    async with evaluator(trained, tmp_path_factory.mktemp("home")) as node:
        yield node


async def read(answers: AsyncGenerator[GenerateResponse, None]) -> tuple[str, list[str], GenerateResponse]:
    """Text, phases and last response of an answer."""
    responses = [response async for response in answers]
    return "".join(each.text for each in responses), [each.phase for each in responses if each.phase], responses[-1]


@pytest.mark.asyncio(loop_scope="module")
async def test_adapters_share_a_base_and_answer_as_alone(node: Evaluator, trained: Trained) -> None:
    """Callers of different jobs are answered at the same time; none may hear another's adapter."""
    first, _, last = await read(node.ask("What is 2 plus 2?"))
    assert first == trained.expected(None, "What is 2 plus 2?", 24)
    assert last.finish_reason in ("stop", "length")
    assert last.usage.prompt_tokens > 0
    assert last.usage.completion_tokens > 0
    assert last.usage.time_to_first_token_seconds > 0
    assert node.residency.warm_models() == ["tiny"]
    asked = [(adapter, f"What is {n} plus {n}?") for n in range(3) for adapter in (0, None, 1)]
    answers = await asyncio.gather(*(read(node.ask(prompt, adapter)) for adapter, prompt in asked))
    assert len(node.pids()) == 1, "the adapters share it"
    for (adapter, prompt), (text, _, _) in zip(asked, answers, strict=True):
        assert text == trained.expected(adapter, prompt, 24), (adapter, prompt)


@pytest.mark.asyncio(loop_scope="module")
async def test_request_is_answered_as_it_says(node: Evaluator, trained: Trained) -> None:
    """Conversation, seed, stop texts and probabilities of one model that stays in memory."""
    plain, _, _ = await read(node.ask("Hello?"))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    conversation, _, _ = await read(node.ask("", messages=messages))
    assert conversation == trained.expected(None, "Hello?", 24, "Be brief.")
    assert conversation == (await read(node.ask("Hello?", system_prompt="Be brief.")))[0]
    assert conversation != plain

    sampled = {"temperature": 1.5, "top_p": 0.9, "seed": 5}
    one, two = [(await read(node.ask("Hello?", **sampled)))[0] for _ in range(2)]
    assert one == two != plain
    assert (await read(node.ask("Hello?", **sampled | {"seed": 6})))[0] != one

    marker = plain[4:7]
    stopped, _, last = await read(node.ask("Hello?", stop=["never found", marker]))
    assert stopped == plain[: plain.index(marker)]
    assert last.finish_reason == "stop"

    responses = [each async for each in node.ask("Hello?", logprobs=True, max_new_tokens=5)]
    told = [token for each in responses for token in each.logprobs]
    assert len(told) == responses[-1].usage.completion_tokens
    assert all(token.logprob <= 0 for token in told)


@pytest.mark.asyncio(loop_scope="module")
async def test_invalid_requests_are_refused_with_the_fields(node: Evaluator, trained: Trained) -> None:
    """A wrong value must not reach the process that answers others."""
    with pytest.raises(InvalidArgument) as caught:
        await read(node.ask("?", temperature=3.0, top_p=0.0, max_new_tokens=0, stop=[""] * 9))
    fields = {violation.field for violation in caught.value.violations}
    assert {"temperature", "top_p", "max_new_tokens", "stop", "stop[0]"} <= fields
    with pytest.raises(InvalidArgument, match="conflicts"):
        await read(node.residency.answers(GenerateRequest(prompt="?", messages=[{"role": "user"}])))
    with pytest.raises(JobError, match=r"has [\d,]+ tokens; the context of tiny has 512") as too_long:
        await read(node.ask("far too long " * 400))
    assert too_long.value.reason == "PROMPT_TOO_LONG"
    base = BaseModelIdentity(id="tiny", revision="local")
    gone = ServedModel(tenant=TENANT, base_model=base, checkpoint_path="jobs/9", checkpoint_manifest_sha256="0" * 64)
    with pytest.raises(NotFound, match="artifact store"):
        await read(node.residency.answers(GenerateRequest(prompt="?", served_model=gone)))


async def test_caller_who_leaves_frees_the_place(trained: Trained, tmp_path: Path) -> None:
    """Otherwise callers who have gone would keep others from being answered."""
    async with evaluator(trained, tmp_path, max_answers=2) as node:
        running = node.ask("Tell me more.", max_new_tokens=400)
        queued = node.ask("Me too.", 1, max_new_tokens=400)
        await anext(running)
        await anext(queued)
        with pytest.raises(ResourceExhausted, match="Ask again in") as caught:
            await read(node.ask("And me?"))
        assert caught.value.reason == "TOO_MANY_ANSWERS"
        await running.aclose()
        await queued.aclose()
        text, _, _ = await read(node.ask("And me?"))
        assert text == trained.expected(None, "And me?", 24)


async def test_tenant_with_many_answers_does_not_keep_others_out(trained: Trained, tmp_path: Path) -> None:
    """Otherwise one tenant with a file of rows would stop everybody else who tries a model."""
    async with evaluator(trained, tmp_path, max_answers=40) as node:
        # More than fit into a batch: some of them wait.
        many = [node.ask(f"Tell me {n}.", max_new_tokens=450) for n in range(40)]
        for each in many:
            await anext(each)
        with pytest.raises(ResourceExhausted, match=r"40 answers of your tenant 'acme' .* limit of 40") as caught:
            await read(node.ask("One more?"))
        assert (caught.value.metadata["tenant"], caught.value.metadata["share"]) == (TENANT, "40")
        # Answers that nobody reads to their end keep their places.
        others = [node.ask(f"And {n}?", tenant="other", max_new_tokens=450) for n in range(20)]
        for each in others:
            await anext(each)
        with pytest.raises(ResourceExhausted, match="20 answers of your tenant 'other'"):
            await read(node.ask("One more?", tenant="other"))
        for each in others:
            await each.aclose()
        reading = [asyncio.create_task(read(each)) for each in many]
        text, _, _ = await read(node.ask("And me?", tenant="other"))
        assert text == trained.expected(None, "And me?", 24)
        # In the order of arrival it would begin after the eight that wait, when nine have ended.
        assert sum(task.done() for task in reading) < 9, "it was answered while those of the first tenant still waited"
        texts = [text for text, _, _ in await asyncio.gather(*reading)]
        assert texts[0] == trained.expected(None, "Tell me 0.", 450)


@pytest.mark.asyncio(loop_scope="module")
async def test_half_of_the_callers_leave(node: Evaluator, trained: Trained) -> None:
    """The others hear what they would hear alone."""

    async def caller(number: int) -> str | None:
        answers = node.ask(f"Question {number}?", number % 2, max_new_tokens=40)
        async with contextlib.aclosing(answers):
            if number % 4 < 2:
                return (await read(answers))[0]
            async for response in answers:
                if response.text:
                    break
        return None

    found = await asyncio.gather(*map(caller, range(8)))
    for number, text in enumerate(found):
        if text is not None:
            assert text == trained.expected(number % 2, f"Question {number}?", 40)


@pytest.mark.long
async def test_callers_who_leave_leave_nothing_behind(trained: Trained, tmp_path: Path) -> None:
    """A node that serves for weeks, and whose callers often stop answers, must neither fill up nor slow down."""
    async with evaluator(trained, tmp_path, max_answers=64) as node:
        prompts = [f"Question {number}?" for number in range(8)]
        expected = {
            (adapter, prompt): trained.expected(adapter, prompt, 60) for adapter in (None, 0) for prompt in prompts
        }

        async def caller(number: int) -> None:
            adapter, prompt = (None, 0)[number // 2 % 2], prompts[number // 4 % 8]
            async with contextlib.aclosing(node.ask(prompt, adapter, max_new_tokens=60)) as answers:
                if number % 2:
                    assert (await read(answers))[0] == expected[adapter, prompt]
                    return
                # Before the answer begins, at its first text, or in its middle.
                for _ in range(number // 2 % 3 * 10 + 1):
                    await anext(answers, None)

        sizes = []
        for _ in range(12):
            # As many as the evaluator takes: none is admitted if the place of one who has left is not free.
            await asyncio.gather(*map(caller, range(64)))
            (pid,) = node.pids()
            sizes.append(psutil.Process(pid).memory_info().rss)
        assert sizes[-1] - sizes[3] < 8 << 20, [size >> 20 for size in sizes]
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "answer"]
        left = await asyncio.to_thread(lambda: list(tmp_path.rglob("asks/*")))
        assert not left, "questions of callers who have left"


@pytest.mark.long
async def test_dead_child_ends_its_answers_and_is_replaced(trained: Trained, tmp_path: Path) -> None:
    """A crash must not look like a short answer, nor last."""
    async with evaluator(trained, tmp_path) as node:
        answers = node.ask("Tell me more.", max_new_tokens=400)
        async for response in answers:
            if response.text:
                break
        (pid,) = node.pids()
        psutil.Process(pid).kill()
        with pytest.raises(Unavailable, match="SIGKILL") as caught:
            await read(answers)
        assert caught.value.reason == "GENERATION_LOST"
        text, phases, _ = await read(node.ask("And now?"))
        assert "loading_model" in phases
        assert text == trained.expected(None, "And now?", 24)


@pytest.mark.long
async def test_idle_model_is_unloaded(trained: Trained, tmp_path: Path) -> None:
    """Its memory belongs to the next training."""
    async with evaluator(trained, tmp_path, idle_seconds=0.01) as node:
        _, phases, _ = await read(node.ask("Hello?"))
        assert phases == ["fetching_model", "loading_model"]
        # Not by waiting for the process, which belongs to its supervisor.
        if lives := set(node.residency._lives):
            await asyncio.wait(lives, timeout=20)
        assert not node.pids()
        assert node.residency.warm_models() == []


@pytest.mark.long
async def test_idle_model_makes_room_and_a_used_one_does_not(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node with little memory serves several models in turn, and refuses instead of being killed."""
    free = 1 << 40

    def hardware(node_id: str, disk: Path) -> Hardware:
        return Hardware(memory_available_bytes=0 if node.pids() else free)

    monkeypatch.setattr("services.evaluator.residency.read_hardware", hardware)
    async with evaluator(trained, tmp_path) as node:
        await read(node.ask("Hello?"))
        (before,) = node.pids()
        busy = node.ask("Tell me more.", max_new_tokens=400)
        await anext(busy)

        def biased() -> AsyncGenerator[GenerateResponse, None]:
            served = ServedModel(
                tenant=TENANT,
                base_model=BaseModelIdentity(id="tiny", revision="local"),
                checkpoint_path="jobs/0",
                checkpoint_manifest_sha256=node.manifests[0],
                exclusive=True,
            )
            return node.residency.answers(GenerateRequest(prompt="Hello?", served_model=served, max_new_tokens=24))

        with pytest.raises(ResourceExhausted, match=r"needs about .* GiB of memory, and 0\.0 GiB are free") as caught:
            await read(biased())
        assert caught.value.reason == "NO_MEMORY_FOR_MODEL"
        await busy.aclose()
        text, _, _ = await read(biased())
        assert text == trained.expected(0, "Hello?", 24)
        (after,) = node.pids()
        assert after != before
