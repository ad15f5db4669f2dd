"""Tests of the chat templates for Ollama: they write what the model was trained on, or there is none."""

import ctypes
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.data.tokenizer import PLAIN_TEMPLATE, Tokenizer
from services.exporter.worker.go_template import CONVERSATIONS, NotDerivable, Turn, go_template, render_go
from tests.tiny_models import CHATML, make_tiny_tokenizer

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant.<|im_end|>\n' }}{% endif %}"
    + CHATML.removeprefix("{% for message in messages %}")
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start|>' + m.role + '<|end|>\n\n' + m.content | trim + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ '[SYS]' + m.content + '[/SYS]' }}"
    "{% elif m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ m.content + eos_token }}"
    "{% endif %}{% endfor %}"
)
BRACES = (
    "{% for m in messages %}{{ '{' + '{{' + m.role + '{' }}{{ m.content }}{{ '}}{%' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '{{assistant{' }}{% endif %}"
)


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    folder = make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))

    def make(template: str) -> Any:
        tokenizer = Tokenizer(folder, template)

        def render(turns: Sequence[Turn], answered: bool) -> str:
            return tokenizer.render(turns, generation_prompt=answered)

        return render

    return make


@pytest.mark.parametrize("jinja", [CHATML, SMOLLM2, PLAIN_TEMPLATE, LLAMA3, MISTRAL])
def test_both_templates_write_the_same(jinja: str, renderer: Callable[[str], Any]) -> None:
    """A model that is asked in another form than it was trained on answers worse, and nobody sees why."""
    render = renderer(jinja)
    template = go_template(render).text
    for system in ("", "Be {{ kind }}."):
        turns = [{"role": "system", "content": system}] * bool(system)
        turns += [{"role": "user", "content": 'A "quoted"\nline — 世界'}, {"role": "assistant", "content": "Yes."}]
        turns += [{"role": "user", "content": "{{ .Content }}"}]
        assert render_go(template, turns) == render(turns, True)


def test_default_system_prompt_is_kept_and_replaced(renderer: Callable[[str], Any]) -> None:
    """Ollama's own templates lose it, so the model would be asked without what it was trained with."""
    template = go_template(renderer(SMOLLM2)).text
    question = [{"role": "user", "content": "Hi"}]
    assert "You are a helpful AI assistant." in render_go(template, question)
    instructed = render_go(template, [{"role": "system", "content": "Be brief."}, *question])
    assert "Be brief." in instructed and "helpful" not in instructed


def test_answer_that_is_continued_has_no_end(renderer: Callable[[str], Any]) -> None:
    """With the end of the answer the model would begin another one."""
    template = go_template(renderer(CHATML)).text
    turns = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "1, 2,"}]
    assert render_go(template, turns).endswith("<|im_start|>assistant\n1, 2,")


@pytest.mark.parametrize(
    ("jinja", "reason"),
    [
        (CHATML.replace("message['content']", "(message['content'] if loop.last else '…')"), "content of each turn"),
        (CHATML.replace("message['role'] +", "message['role'] + loop.index|string +"), "depends on"),
        (CHATML.replace("message['content']", "message['content']|upper"), "content of each turn"),
        (CHATML.replace("message['content']", "message['content']|replace('1', '2')"), "depends on"),
        ("{{ raise_exception('no system') if messages[0].role == 'system' }}" + CHATML, "no system"),
    ],
)
def test_template_that_go_cannot_express_is_named(jinja: str, reason: str, renderer: Callable[[str], Any]) -> None:
    """A model that is asked in a wrong form answers worse; the reason says what to write by hand."""
    with pytest.raises(NotDerivable, match=reason):
        go_template(renderer(jinja))


def test_braces_of_a_template_are_text(renderer: Callable[[str], Any]) -> None:
    """Go reads two braces as the beginning of an action."""
    render = renderer(BRACES)
    template = go_template(render).text
    turns = [{"role": "user", "content": "Hi"}]
    assert render_go(template, turns) == render(turns, True) == "{{{user{Hi}}{%{{assistant{"


@pytest.mark.long
@pytest.mark.skipif(
    importlib.util.find_spec("cognihub_pygotemplate") is None,
    reason="cognihub-pygotemplate (Go's templates; wheels for Python 3.10 and 3.12 only) is not installed",
)
@pytest.mark.parametrize("jinja", [CHATML, SMOLLM2, PLAIN_TEMPLATE, LLAMA3, MISTRAL, BRACES])
def test_go_itself_writes_the_same(jinja: str, renderer: Callable[[str], Any]) -> None:
    """The proof of each export is only as good as our rendering of Go's templates."""
    spec = importlib.util.find_spec("cognihub_pygotemplate")
    assert spec is not None and spec.submodule_search_locations is not None
    library = ctypes.CDLL(str(Path(spec.submodule_search_locations[0]) / "librenderer.so"))
    # Its Python module frees another address than the one that it was given.
    library.RenderTemplate.restype = ctypes.c_void_p
    template = go_template(renderer(jinja)).text
    for turns in CONVERSATIONS:
        system = "\n\n".join(turn["content"] for turn in turns if turn["role"] == "system")
        messages = [{"Role": turn["role"], "Content": turn["content"]} for turn in turns]
        values = json.dumps({"System": system, "Messages": messages}).encode()
        written = ctypes.string_at(library.RenderTemplate(template.encode(), values)).decode()
        assert written == render_go(template, turns)
