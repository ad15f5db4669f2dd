"""`ftf demo` with the real model; its result is measured again with plain transformers and peft."""

import contextlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import psutil
import pytest

FTF = str(Path(sys.executable).with_name("ftf"))
HELD_OUT = Path(__file__).parents[2] / "examples" / "data" / "demo_heldout.jsonl"

# In a process of its own, with nothing but torch, transformers and peft.
MEASURE = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, package, rows = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(package)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), package).eval()
total = count = 0
for line in open(rows):
    row = json.loads(line)
    question = [{"role": "user", "content": row["question"]}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, tokenize=False)
    answer = row["answer"] + tokenizer.eos_token
    start = len(tokenizer(prompt, add_special_tokens=False).input_ids)
    ids = torch.tensor([tokenizer(prompt + answer, add_special_tokens=False).input_ids])
    with torch.no_grad():
        scores = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
    total -= scores.gather(1, ids[0, start:, None]).sum().item()
    count += ids.shape[1] - start
print(json.dumps({"loss": total / count, "tokens": count}))
"""


def _processes_of_home(home: Path) -> list[list[str]]:
    """Returns the command lines of processes that were started with that home."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME") == str(home):
                found.append(process.cmdline())
    return found


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_demo_lowers_the_loss_and_reports_it_correctly(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path)}
    demo = subprocess.run(
        [FTF, "demo", "--output", str(tmp_path / "out")], env=environment, capture_output=True, text=True, check=False
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert not _processes_of_home(tmp_path)

    package = tmp_path / "package"
    zipfile.ZipFile(tmp_path / "out" / "finetuneflow_export.zip").extractall(package)
    reported = json.loads((package / "metrics.json").read_text())["evaluation"]
    assert reported["tuned"]["loss"] < reported["base"]["loss"] - 0.5
    path = subprocess.run(
        [FTF, "models", "path", "smollm2-135m"], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    measured = json.loads(
        subprocess.run(
            [sys.executable, "-c", MEASURE, path, str(package), str(HELD_OUT)],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    assert measured["tokens"] == reported["num_trained_tokens"]
    assert measured["loss"] == pytest.approx(reported["tuned"]["loss"], abs=1e-3)
