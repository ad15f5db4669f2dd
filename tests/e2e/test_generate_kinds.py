"""Text from tuned models of every kind, beside what the evaluation and the package's own libraries answer."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from finetuneflow import Client
from finetuneflow.resources.job import Job
from tests.e2e.conftest import System, unpacked_package
from tests.tiny_models import make_tiny_model

# A job for each kind.
pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

KINDS: Final[Mapping[str, dict[str, Any]]] = {
    "lora": {"lora": {"r": 4}},
    "rslora": {"lora": {"r": 4, "use_rslora": True}},
    "dora": {"lora": {"r": 4, "use_dora": True}},
    "pissa": {"lora": {"r": 4, "init_lora_weights": "pissa"}},
    "loftq": {"method": "qlora", "lora": {"r": 4, "init_lora_weights": "loftq"}},
    "qlora": {"method": "qlora", "lora": {"r": 4}},
    "full": {"method": "full"},
    "all_biases": {"lora": {"r": 4, "bias": "all"}},
    "lora_biases": {"lora": {"r": 4, "bias": "lora_only"}},
    "head": {"lora": {"r": 4, "modules_to_save": ["lm_head"]}},
    "embedding": {"lora": {"r": 4, "modules_to_save": ["embed_tokens", "lm_head"]}},
    "tokens": {"lora": {"r": 4, "trainable_tokens": ["<|im_start|>", "<|im_end|>"]}},
}
PROMPTS: Final = ("What is 3 plus 3?", "How many apples does Ann have left?", "Return the items in order.")
NEW_TOKENS: Final = 24


@dataclass(frozen=True)
class Trained:
    """A finished job with the answers of its evaluation to PROMPTS."""

    job: Job
    answers: dict[str, str]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    home = tmp_path_factory.mktemp("home")
    models = json.dumps({"biased": str(make_tiny_model(home / "biased-model", biases=True))})
    system = System(home, FTF_MODELS=models)
    system.start()
    yield system
    system.stop()


@pytest.fixture(scope="module")
def trained(system: System, rows: Path) -> dict[str, Trained]:
    with Client(system.address) as client:
        jobs = {kind: _create(client, rows, settings) for kind, settings in KINDS.items()}
        found = {}
        for kind, created in jobs.items():
            job = client.jobs.wait(created.id)
            samples = [event.payload for event in client.jobs.events(job.id) if event.kind == "sample"]
            asked = {sample.instruction: sample for sample in samples if sample.instruction in PROMPTS}
            found[kind] = Trained(job, {prompt: asked[prompt].model_output for prompt in PROMPTS})
            assert any(asked[prompt].base_output != asked[prompt].model_output for prompt in PROMPTS), kind
    return found


def _create(client: Client, rows: Path, settings: Mapping[str, Any]) -> Job:
    return client.jobs.create(
        base_model="biased",
        training_data=str(rows),
        hyperparameters={"max_steps": 8, "eval_steps": 8, "max_length": 64, "learning_rate": 2e-2},
        evaluation={"prompts": list(PROMPTS), "num_samples": 1, "max_rows": 4, "max_new_tokens": NEW_TOKENS},
        **settings,
    )


def _generated(client: Client, job: Job, prompt: str) -> str:
    return "".join(client.models.generate(job.tuned_model, prompt, max_new_tokens=NEW_TOKENS))


@pytest.mark.parametrize("kind", KINDS)
def test_all_say_the_same(
    system: System, client: Client, trained: dict[str, Trained], kind: str, tmp_path: Path
) -> None:
    """A user who likes what the evaluation shows must get it from a request, and from the package on another server."""
    made = trained[kind]
    package = unpacked_package(client, made.job.id, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(package)
    model = _of_package(package, system.home / "biased-model", kind)
    for prompt in PROMPTS:
        turns = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            answer = model.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS)[0, ids.shape[1] :].tolist()
        if tokenizer.eos_token_id in answer:
            answer = answer[: answer.index(tokenizer.eos_token_id)]
        plain = tokenizer.decode(answer)
        # The evaluation shows answers without white space at their ends, and a character that is cut.
        assert plain.strip() == made.answers[prompt].strip(), prompt
        assert _generated(client, made.job, prompt) == plain.rstrip("\ufffd"), prompt


def _of_package(package: Path, base: Path, kind: str) -> Any:
    if kind == "full":
        return AutoModelForCausalLM.from_pretrained(package, dtype=torch.float32)
    config = None
    if kind == "loftq":
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=config)
    return PeftModel.from_pretrained(model, package).eval()


def test_kinds_of_one_base_are_answered_at_the_same_time(
    system: System, client: Client, trained: dict[str, Trained]
) -> None:
    """Tenants try their models on one base model; one tenant's biases or modules must not be in another's answer."""
    kinds = ("lora", "all_biases", "dora", "embedding", "rslora", "tokens", "lora")

    def ask(number: int) -> tuple[str, str, str]:
        kind, prompt = kinds[number % len(kinds)], PROMPTS[number % len(PROMPTS)]
        with Client(system.address) as own:
            return kind, prompt, _generated(own, trained[kind].job, prompt)

    with ThreadPoolExecutor(16) as threads:
        for kind, prompt, text in threads.map(ask, range(42)):
            assert text.strip() == trained[kind].answers[prompt].rstrip("\ufffd").strip(), (kind, prompt)
    base = "".join(client.models.generate("biased", PROMPTS[0], max_new_tokens=NEW_TOKENS))
    assert base != _generated(client, trained["lora"].job, PROMPTS[0])
