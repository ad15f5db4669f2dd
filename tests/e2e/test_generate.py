"""Text from base and tuned models, through the SDK and the command line."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from finetuneflow import Client, InvalidArgument, NotFound, Unavailable
from finetuneflow.resources.job import Job
from tests.e2e.conftest import System

# The model must learn its answers first.
pytestmark = pytest.mark.long

SYSTEM = "请简短回答。"
PROMPT = "三加三是多少？"


@pytest.fixture(scope="module")
def job(system: System, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job that learns to answer in Chinese, in characters of several tokens."""
    rows = tmp_path_factory.mktemp("chinese") / "rows.jsonl"
    lines = [{"question": f"{n}加{n}是多少？", "answer": "答案是：很多！"} for n in range(160)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Client(system.address) as client:
        job = client.jobs.create(
            base_model="tiny",
            training_data=str(rows),
            system_prompt=SYSTEM,
            hyperparameters={
                "max_steps": 40,
                "max_length": 256,
                "learning_rate": 1e-2,
                "save_steps": 20,
                "eval_steps": 20,
            },
            evaluation={"prompts": [PROMPT], "num_samples": 2, "max_new_tokens": 48},
        )
        return client.jobs.wait(job.id)


def answer(client: Client, model: str, prompt: str | None = None, **settings: object) -> str:
    return "".join(client.models.generate(model, prompt, **settings))  # type: ignore[arg-type]


def test_answer_is_the_sample_of_the_evaluation(client: Client, job: Job) -> None:
    """A user who tries a model must see what its report shows: same template, system prompt and weights. A character
    that is cut would differ too."""
    samples = [event.payload for event in client.jobs.events(job.id) if event.kind == "sample"]
    assert PROMPT in [sample.instruction for sample in samples]
    for sample in samples:
        parts = list(client.models.generate(job.tuned_model, sample.instruction, max_new_tokens=48))
        assert "".join(parts).strip() == sample.model_output.rstrip("\ufffd").strip()
        assert parts[-1].usage is not None
        assert parts[-1].usage.completion_tokens == sample.output_length
        base = answer(client, "tiny", sample.instruction, system_prompt=SYSTEM, max_new_tokens=48)
        assert base.strip() == sample.base_output.rstrip("\ufffd").strip()
    assert any("答" in sample.model_output for sample in samples), "the test needs Chinese answers"


def test_checkpoints_and_job_ids_are_names_of_models(client: Client, job: Job) -> None:
    steps = sorted({checkpoint.step for checkpoint in client.jobs.checkpoints(job.id)})
    assert steps
    for step in steps:
        assert list(client.models.generate(f"{job.tuned_model}@{step}", PROMPT, max_new_tokens=4))
    assert answer(client, job.id, PROMPT) == answer(client, job.tuned_model, PROMPT)
    with pytest.raises(NotFound, match="no such fine-tuning job"):
        answer(client, "ft:ftjob_none", PROMPT)
    with pytest.raises(NotFound, match="ft:<job_id>"):
        answer(client, "nobody", PROMPT)
    with pytest.raises(NotFound, match="step 999"):
        answer(client, f"{job.tuned_model}@999", PROMPT)


def test_settings_of_a_request_are_obeyed(client: Client, job: Job) -> None:
    model = job.tuned_model
    plain = answer(client, model, PROMPT, max_new_tokens=40)
    assert plain == answer(client, model, messages=[{"role": "user", "content": PROMPT}], max_new_tokens=40)
    other = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    asked = list(client.models.generate(model, messages=other, max_new_tokens=40))
    assert asked[-1].finish_reason in ("stop", "length")
    marker = plain[2:4]
    assert answer(client, model, PROMPT, max_new_tokens=40, stop=[marker]) == plain[: plain.index(marker)]
    sampled = {"temperature": 1.5, "seed": 3, "max_new_tokens": 40}
    assert answer(client, model, PROMPT, **sampled) == answer(client, model, PROMPT, **sampled)
    with pytest.raises(InvalidArgument, match="temperature"):
        answer(client, model, PROMPT, temperature=5)
    with pytest.raises(InvalidArgument, match="context"):
        answer(client, model, PROMPT * 200)


@pytest.mark.parametrize("callers", [8, 64])
def test_parallel_callers_of_whom_half_leave(system: System, job: Job, callers: int) -> None:
    """Callers who close their program must not slow down or change the answers of others."""
    names = [job.tuned_model, "tiny"]
    with Client(system.address) as client:
        expected = {name: answer(client, name, PROMPT, max_new_tokens=60) for name in names}

    def call(number: int) -> str | None:
        name = names[number // 2 % 2]
        with Client(system.address) as own:
            parts = own.models.generate(name, PROMPT, max_new_tokens=60)
            if number % 2:
                next(parts)
                parts.close()
                return None
            return "".join(parts)

    with ThreadPoolExecutor(callers) as threads:
        for number, text in enumerate(threads.map(call, range(callers))):
            assert text in (None, expected[names[number // 2 % 2]])


def test_killed_process_ends_the_answer_and_is_replaced(system: System, client: Client) -> None:
    """Half an answer must not look complete, and one crash must not disable the model."""
    parts = client.models.generate("tiny", "Tell me more.", max_new_tokens=400)
    next(part for part in parts if part)
    for process in system.processes("services.evaluator.resident"):
        process.kill()
        psutil.wait_procs([process], 20)
    with pytest.raises(Unavailable, match="SIGKILL"):
        list(parts)
    assert answer(client, "tiny", "Tell me more.", max_new_tokens=8)


def test_commands_answer_rows_and_talk(system: System, job: Job, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    lines = [{"question": PROMPT, "answer": "答案是6。"}, {"question": "二加二是多少？"}]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ftf(system, "generate", job.id, "--rows", str(rows), "--out", str(out), "--max-new-tokens", "40")
    answers = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [each["user_prompt"] for each in answers] == [PROMPT, "二加二是多少？"]
    assert [each["ground_truth"] for each in answers] == ["答案是6。", None]
    shown = json.loads(ftf(system, "generate", job.id, "--prompt", PROMPT, "--max-new-tokens", "40", "--json"))
    assert shown["text"] == answers[0]["assistant_response"]
    assert shown["usage"]["completion_tokens"] > 0
    filled = ftf(
        system, "generate", job.id, "--rows", str(rows), "--template", "{{ question }}", "--max-new-tokens", "40"
    )
    assert [json.loads(line)["assistant_response"] for line in filled.splitlines()] == [
        each["assistant_response"] for each in answers
    ]
    talk = ftf(system, "chat", job.id, "--max-new-tokens", "40", typed=f"{PROMPT}\n/reset\n{PROMPT}\n/quit\n")
    assert talk.count(answers[0]["assistant_response"]) == 2


def ftf(system: System, *arguments: str, typed: str = "") -> str:
    """Runs a command line and returns what it printed."""
    command = [sys.executable, "-m", "finetuneflow.cli", *arguments]
    environment = {**system.environment, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="utf-8", input=typed, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
