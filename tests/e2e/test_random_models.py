"""Jobs whose base model has random weights: another model's shape, and a tokenizer of the job's own rows."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetuneflow import Client
from finetuneflow.errors import InvalidArgument, NotFound
from finetuneflow.resources.job import Job
from tests.e2e.conftest import System, unpacked_package

pytestmark = pytest.mark.long

SHORT = {"max_steps": 30, "save_steps": 15, "eval_steps": 15, "max_length": 64, "learning_rate": 1e-2}
CORPUS = "random:tiny,tokenizer=corpus,vocab_size=400,seed=3"


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "wizards", "mix", "potions"]
    draw = random.Random(0)  # noqa: S311 - text, not a secret
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": " ".join(draw.choices(words, k=20))}) + "\n" for _ in range(150)))
    return file


@pytest.fixture(scope="module")
def job(system: System, texts: Path) -> Job:
    with Client(system.address) as client:
        created = client.jobs.create(
            base_model=CORPUS, training_data=str(texts), hyperparameters=SHORT, export={"formats": ["merged"]}
        )
        return client.jobs.wait(created.id)


def ftf(system: System, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finetuneflow.cli", *arguments]
    return subprocess.run(command, env=system.environment, capture_output=True, text=True, timeout=180)


def base_of(job: Job) -> Any:
    assert job.preflight is not None
    return job.preflight.base_model


def test_tokenizer_of_the_corpus_goes_through_all_stages(
    system: System, client: Client, job: Job, tmp_path: Path
) -> None:
    """The model learns, is evaluated against its random weights, packed with its tokenizer, and answers."""
    assert (job.state, job.resolved_spec["method"]) == ("SUCCEEDED", "full")
    base = base_of(job)
    sha256 = base.id.removeprefix("random:tiny,tokenizer=corpus:").removesuffix(",seed=3")
    assert len(sha256) == 64
    assert base.weights_sha256 and base.tokenizer_path.endswith("/tokenizer/tokenizer.json")
    phases = [event.payload.name for event in client.jobs.events(job.id) if event.kind == "phase"]
    assert phases.index("training_tokenizer") < phases.index("tokenising") < phases.index("making_model")
    (noted,) = [each for each in job.resolutions if each.field == "base_model.tokenizer"]
    assert "tokens" in noted.value

    evaluation = client.evaluations.get(job.evaluation_id)
    assert evaluation.delta < -0.5, "the trained model must beat its random weights on held-out rows"

    folder = unpacked_package(client, job.id, tmp_path)
    merged = folder / "merged"
    (stored,) = system.home.rglob(base.tokenizer_path)
    assert hashlib.sha256(stored.read_bytes()).hexdigest() == sha256
    kept, packed = (json.loads(file.read_text())["model"] for file in (stored, merged / "tokenizer.json"))
    assert (packed["vocab"], packed["merges"]) == (kept["vocab"], kept["merges"])
    assert "the tokenizer was trained on the rows of the job" in (folder / "README.md").read_text()
    tokenizer = AutoTokenizer.from_pretrained(merged)
    model = AutoModelForCausalLM.from_pretrained(merged)
    assert len(tokenizer) <= model.config.vocab_size < len(tokenizer) + 64 <= 464
    assert model.config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|endoftext|>")

    assert "".join(client.models.generate(job.tuned_model, "the quick", max_new_tokens=8))
    shown = ftf(system, "models", "path", base.id, "--home", str(system.home))
    assert (Path(shown.stdout.strip()) / "model.safetensors").is_file(), shown.stderr


def test_second_job_has_the_same_base_model(system: System, client: Client, job: Job, texts: Path) -> None:
    """Its shards and its weights are those of the first one; an adapter on them is trained further."""
    settings: dict[str, Any] = {"training_data": str(texts), "hyperparameters": SHORT}
    second = client.jobs.wait(client.jobs.create(base_model=CORPUS, method="lora", **settings).id)
    assert second.preflight is not None and second.preflight.shards_reused
    first_base, second_base = base_of(job), base_of(second)
    assert second_base.id == first_base.id
    assert second_base.weights_sha256 == first_base.weights_sha256
    assert second_base.tokenizer_path != first_base.tokenizer_path

    third = client.jobs.wait(client.jobs.create(base_model=second.tuned_model, **settings).id)
    assert third.state == "SUCCEEDED"
    assert base_of(third).weights_sha256 == first_base.weights_sha256
    assert base_of(third).tokenizer_path not in (first_base.tokenizer_path, second_base.tokenizer_path)

    compared = client.evaluations.create(model=third.tuned_model, against=job.tuned_model)
    assert client.evaluations.wait(compared.id).state == "SUCCEEDED"


def test_its_tokenizer_is_found_through_the_job_only(client: Client, job: Job, texts: Path) -> None:
    """The name alone says nothing of where the tokenizer is, and whose it is."""
    with pytest.raises(InvalidArgument, match="trained on the rows of a job"):
        client.jobs.create(base_model=base_of(job).id, training_data=str(texts))
    with pytest.raises(NotFound, match="trained on the rows of a job"):
        client.evaluations.create(model=CORPUS, data=[str(texts)])


def test_dry_run_and_estimate_know_the_tokenizer(client: Client, texts: Path) -> None:
    """Before a job exists, a user sees how many tokens the corpus gives."""
    data = client.datasets.upload(str(texts)).id
    spec = {"base_model": CORPUS, "training_data": data, "hyperparameters": SHORT}
    dry = client.jobs.preflight(spec=spec)
    assert not [finding for finding in dry.report.findings if finding.severity == "ERROR"]
    (noted,) = [each for each in dry.resolutions if each.field == "base_model.tokenizer"]
    assert "400 were asked for" in noted.reason or noted.value == "400 tokens"
    report = client.datasets.validate(data, base_model=CORPUS)
    assert report.training_data.num_examples == 150


def test_shape_with_its_own_tokenizer_is_trained(system: System, client: Client, rows: Path) -> None:
    """Conversations too; an operator sees where the weights are."""
    settings: dict[str, Any] = {"training_data": str(rows), "hyperparameters": SHORT}
    trained = client.jobs.wait(client.jobs.create(base_model="random:tiny", **settings).id)
    assert (trained.state, trained.resolved_spec["method"]) == ("SUCCEEDED", "full")
    assert base_of(trained).id == "random:tiny"
    assert "".join(client.models.generate("random:tiny", "What is 1?", max_new_tokens=4))
    shown = ftf(system, "models", "path", "random:tiny", "--home", str(system.home))
    assert (Path(shown.stdout.strip()) / "model.safetensors").is_file(), shown.stderr
