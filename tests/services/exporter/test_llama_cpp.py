"""llama.cpp runs an exported file: its tokens, rendered conversations and probabilities are those of the training."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from engine.data.tokenizer import Tokenizer
from engine.model.materialise import materialise, packaged_gguf
from services.exporter.worker.child_input import ExportInput
from tests.servers.llama_cpp import FOLDERS, LlamaCppServer
from tests.services.exporter.conftest import random_adapter
from tests.services.exporter.test_gguf import export
from tests.tiny_models import make_tiny_llama

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not FOLDERS, reason="llama.cpp's server is not installed; `make test-long` installs it"),
]

# What real templates use: a system message by default, a namespace, filters, the loop's state, whitespace control.
TEMPLATE = """\
{%- set state = namespace(turns=0) -%}
{%- if messages[0]['role'] != 'system' -%}
{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{%- set state.turns = state.turns + 1 -%}
{%- endif %}
{{- '<|im_start|>' ~ message.role | lower + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{%- if loop.last and add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
{%- endfor -%}"""
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "What does this function do?"}],
    [
        {"role": "system", "content": "Answer  briefly.\n"},
        {"role": "user", "content": " How many apples? <b>42</b> & 'more' \"quotes\" "},
        {"role": "assistant", "content": "Grüße, 日本語 🙂"},
        {"role": "user", "content": "Return True\n\n\tif the path exists {{ 1 }}"},
    ],
]


@pytest.fixture(params=["", TEMPLATE], ids=["own template", "another"])
def given(request: pytest.FixtureRequest, export_input: ExportInput, tmp_path: Path) -> ExportInput:
    """The export of a random model of two layers, and the tokenizer of a real one."""
    real = tmp_path / "real"
    materialise(packaged_gguf(), real, weights=False)
    base = make_tiny_llama(tmp_path / "base", vocab_size=49152)
    for file in (*real.glob("tokenizer*"), real / "chat_template.jinja"):
        shutil.copyfile(file, base / file.name)
    if request.param:
        (base / "chat_template.jinja").write_text(request.param)
    model = export_input.model.model_copy(update={"path": base})
    return export_input.model_copy(update={"model": model, "adapter_dir": random_adapter(base, tmp_path / "adapter")})


@pytest.fixture
def server(given: ExportInput, tmp_path: Path) -> Iterator[LlamaCppServer]:
    (form,) = export(given, tmp_path).forms
    server = LlamaCppServer(given.out_dir / form.gguf.file, tmp_path / "server.log")
    yield server
    server.stop()


def test_server_computes_what_was_trained(given: ExportInput, server: LlamaCppServer) -> None:
    """Everything else about a GGUF file is compared with readers in Python; people run llama.cpp, with its
    own tokenizer, Jinja and kernels."""
    tokenizer = Tokenizer(given.model.path)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(given.model.path), given.adapter_dir).eval()
    for messages in CONVERSATIONS:
        prompt = tokenizer.render(messages, generation_prompt=True)
        assert server.ask("/apply-template", {"messages": messages})["prompt"] == prompt
        ids = list(tokenizer.encode(prompt).ids)
        asked = {"content": prompt, "add_special": True, "parse_special": True}
        assert server.ask("/tokenize", asked)["tokens"] == ids
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([ids])).logits[0, -1].float().log_softmax(0)
        asked = {"prompt": prompt, "n_predict": 1, "n_probs": 10, "temperature": 0}
        (answer,) = server.ask("/completion", asked)["completion_probabilities"]
        found = {each["id"]: each["logprob"] for each in answer["top_logprobs"]}
        assert answer["id"] == int(expected.argmax())
        assert len(found) == 10
        # The weights have 16 bits.
        assert found == pytest.approx({token: float(expected[token]) for token in found}, abs=0.02)
        assert min(found.values()) >= float(expected.topk(10).values[-1]) - 0.02
