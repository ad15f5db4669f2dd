"""Exactly the answers are trained: a token too many teaches the model to ask, one too few never to stop."""

import json
import mmap
import resource
import signal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.job import LossScope
from engine.data import template_limits
from engine.data.conversations import Message
from engine.data.formats import Example
from engine.data.spans import IGNORED, prompt_text, tokens_of, tokens_of_all, whole_text
from engine.data.tokenizer import PLAIN_TEMPLATE, Tokenizer
from engine.errors import JobError
from tests.tiny_models import make_tiny_tokenizer

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=40).filter(
    lambda text: text.strip() and "<|" not in text
)
TURNS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def undecoded(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The same tokenizer in a form that does not show that its tokens are runs of bytes."""
    folder = make_tiny_tokenizer(tmp_path_factory.mktemp("undecoded"))
    described = json.loads((folder / "tokenizer.json").read_text())
    described["decoder"] = {"type": "Sequence", "decoders": [described["decoder"]]}
    (folder / "tokenizer.json").write_text(json.dumps(described))
    return Tokenizer(folder)


def conversation(turns: list[tuple[str, str]]) -> list[Message]:
    pairs = [(("user", asked), ("assistant", answered)) for asked, answered in turns]
    return [{"role": role, "content": content} for pair in pairs for role, content in pair]


@settings(max_examples=60, deadline=None)
@given(turns=TURNS)
def test_trained_tokens_spell_the_answers_and_their_ends(tokenizer: Tokenizer, turns: list[tuple[str, str]]) -> None:
    """Whatever the text: every answer, the mark after it, and nothing else."""
    messages = conversation(turns)
    tokens = tokens_of(Example(1, messages), tokenizer, "response", 100_000)
    trained = [label for label in tokens.labels if label != IGNORED]
    assert all(label in (IGNORED, id_) for id_, label in zip(tokens.input_ids, tokens.labels, strict=True))
    # A tokenizer may join the newline before an answer to a newline it begins with; that token is trained whole.
    expected = "".join(f"{answered}<|im_end|>" for _, answered in turns)
    assert tokenizer.decode(trained).replace("\n", "") == expected.replace("\n", "")
    assert tokenizer.decode(tokens.input_ids) == tokenizer.render(messages)
    everything = tokens_of(Example(1, messages), tokenizer, "all", 100_000)
    assert everything.labels.tolist() == everything.input_ids.tolist() == tokens.input_ids.tolist()


def test_a_template_that_marks_its_answers_is_taken_at_its_word(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """One answer of two is trained where the row says so; marks that are no answers one by one are no help."""
    marked = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
        "{%- generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}{% else %}"
        "{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    folder = make_tiny_tokenizer(tmp_path / "tokenizer")
    messages = conversation([("One?", "1"), ("Two?", "2")])

    def trained(template: str, untrained: frozenset[int] = frozenset()) -> str:
        one = Tokenizer(folder, template)
        tokens = tokens_of(Example(1, messages, untrained=untrained), one, "response", 1000)
        return one.decode([label for label in tokens.labels if label != IGNORED])

    assert trained(marked) == "1<|im_end|>\n2<|im_end|>\n"
    assert trained(marked, frozenset({1})) == "2<|im_end|>\n"
    twice = marked.replace("{%- generation %}", "{% generation %}{% endgeneration %}{% generation %}")
    assert trained(twice) == "1<|im_end|>2<|im_end|>"


@settings(max_examples=30, deadline=None)
@given(turns=TURNS, max_length=st.integers(8, 60))
def test_truncation_cuts_the_end_and_says_so(
    tokenizer: Tokenizer, turns: list[tuple[str, str]], max_length: int
) -> None:
    """A row over max_length keeps its beginning; labels stay beside their ids."""
    whole = tokens_of(Example(1, conversation(turns)), tokenizer, "response", 100_000)
    cut = tokens_of(Example(1, conversation(turns)), tokenizer, "response", max_length)
    assert cut.input_ids.tolist() == whole.input_ids[:max_length].tolist()
    assert cut.labels.tolist() == whole.labels[:max_length].tolist()
    assert cut.truncated == (len(whole.input_ids) > max_length)


def test_the_prompt_ends_where_the_answer_begins(tokenizer: Tokenizer) -> None:
    """Evaluation asks exactly what training answered."""
    example = Example(1, conversation([("How many?", "42")]))
    tokens = tokens_of(example, tokenizer, "response", 512)
    first = next(index for index, label in enumerate(tokens.labels) if label != IGNORED)
    assert tokenizer.encode(prompt_text(example, tokenizer)).ids == tokens.input_ids[:first].tolist()
    assert prompt_text(example, tokenizer).endswith("<|im_start|>assistant\n")


def test_only_turns_of_the_completion_are_trained(tokenizer: Tokenizer) -> None:
    """In conversational prompt/completion rows earlier answers are context."""
    messages = conversation([("a", "first"), ("b", "second")])
    tokens = tokens_of(Example(1, messages, answers_from=3), tokenizer, "response", 512)
    assert tokenizer.decode([label for label in tokens.labels if label != IGNORED]) == "second<|im_end|>"


def test_plain_text_ends_with_the_end_of_text_token(tokenizer: Tokenizer) -> None:
    """Without it the model would never learn to stop."""
    tokens = tokens_of(Example(1, prompt="2 + 2 =", completion=" 4"), tokenizer, "response", 512)
    assert tokens.input_ids[-1] == tokens.labels[-1] == tokenizer.eos_id
    assert tokenizer.decode([label for label in tokens.labels if label != IGNORED]) == " 4<|im_end|>"
    text = tokens_of(Example(1, completion="Once upon a time"), tokenizer, "response", 512)
    assert text.labels.tolist() == text.input_ids.tolist()


def test_a_model_without_a_template_gets_the_plain_one(tmp_path: Path) -> None:
    """A base model can be tuned on questions and answers too."""
    plain = Tokenizer(make_tiny_tokenizer(tmp_path, chat_template=None))
    assert plain.template == PLAIN_TEMPLATE
    assert not plain.has_own_template
    tokens = tokens_of(Example(1, conversation([("Why?", "Because.")])), plain, "response", 512)
    assert plain.decode([label for label in tokens.labels if label != IGNORED]) == "Because.<|im_end|>"


def test_a_template_without_an_end_of_turn_gets_the_end_of_text_token(tmp_path: Path) -> None:
    """Otherwise generation would run on to its limit for ever."""
    endless = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    endless += "{% if add_generation_prompt %}assistant: {% endif %}"
    tokenizer = Tokenizer(make_tiny_tokenizer(tmp_path), endless)
    tokens = tokens_of(Example(1, conversation([("Why?", "So.")])), tokenizer, "response", 512)
    assert tokenizer.decode([label for label in tokens.labels if label != IGNORED]) == "So.\n<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_is_refused(tmp_path: Path) -> None:
    """Masks guessed from such a template would train on the wrong tokens without anybody noticing."""
    rewriting = "{{ messages|length }}{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
    tokenizer = Tokenizer(make_tiny_tokenizer(tmp_path), rewriting)
    with pytest.raises(JobError, match="cannot be located") as caught:
        tokens_of(Example(1, conversation([("a", "b")])), tokenizer, "response", 512)
    assert caught.value.reason == "TEMPLATE_NOT_INCREMENTAL"


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{% for %}", "{{ raise_exception('no') }}", "{{ 1 / 0 }}"],
)
def test_a_hostile_or_broken_template_is_the_callers_error(tmp_path: Path, template: str) -> None:
    """A template runs in a sandbox, and its failure names the field."""
    tokenizer = Tokenizer(make_tiny_tokenizer(tmp_path), template)
    with pytest.raises(JobError) as caught:
        tokenizer.render([{"role": "user", "content": "a"}])
    assert caught.value.violations[0].field == "spec.chat_template"


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(a='ab') %}{% for i in range(60) %}{% set n.a = n.a ~ n.a %}{% endfor %}{{ n.a }}",
        "{{ 'a' * 10 ** 10 }}",
    ],
)
def test_a_template_that_does_not_end_is_the_callers_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    """A job whose template loops would hold its worker for ever, and each row of it would."""
    monkeypatch.setattr(template_limits, "MAX_SECONDS", 0.5)
    tokenizer = Tokenizer(make_tiny_tokenizer(tmp_path), template)
    rows = [Example(number, conversation([("a", "b")])) for number in range(1, 100)]
    with pytest.raises(JobError) as caught:
        tokens_of_all(rows, tokenizer, "response", 512)
    assert caught.value.reason == "TEMPLATE_EXCEEDED"
    assert caught.value.violations[0].field == "spec.chat_template"
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_the_models_own_template_has_a_limit_of_memory(tmp_path: Path) -> None:
    """A model from the hub brings its template; one line of it would take the memory of the whole machine."""
    tokenizer = Tokenizer(make_tiny_tokenizer(tmp_path, chat_template="{{ 'A' * 2000000000 }}"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(JobError, match="too much memory") as caught:
        tokens_of_all([Example(1, conversation([("a", "b")]))], tokenizer, "response", 512)
    assert caught.value.reason == "TEMPLATE_EXCEEDED"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY


def test_memory_that_was_taken_since_the_last_row_is_not_the_templates(tmp_path: Path) -> None:
    """Otherwise a job would be refused now and then, because its process grew."""
    tokenizer = Tokenizer(make_tiny_tokenizer(tmp_path, chat_template="{{ messages[0].content * 200000000 }}"))
    turns = [{"role": "user", "content": "A"}]
    tokenizer.render(turns)
    grown = mmap.mmap(-1, 450_000_000)
    assert len(tokenizer.render(turns)) == 200_000_000
    grown.close()


@pytest.mark.parametrize("template", ["{% for m in mesages %}{{ m.content }}{% endfor %}", "{{ messages.__class__ }} "])
@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_a_template_that_writes_nothing_is_the_callers_error(tmp_path: Path, template: str, loss_on: LossScope) -> None:
    """A name that is mistyped is empty, and so is what is made of it."""
    tokenizer = Tokenizer(make_tiny_tokenizer(tmp_path), template)
    with pytest.raises(JobError, match="writes nothing") as caught:
        tokens_of(Example(1, conversation([("a", "b")])), tokenizer, loss_on, 512)
    assert caught.value.reason == "TEMPLATE_FAILED"
    assert caught.value.violations[0].field == "spec.chat_template"


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=4), edges=st.tuples(st.integers(0, 40), st.integers(0, 40)))
@pytest.mark.parametrize("counts_bytes", [True, False])
def test_several_texts_are_encoded_and_marked_as_each_alone(
    tokenizer: Tokenizer, undecoded: Tokenizer, counts_bytes: bool, texts: list[str], edges: tuple[int, int]
) -> None:
    """Whichever way tokens are found again in the text: the ids are those of one row, the mask that of its offsets."""
    encoded = (tokenizer if counts_bytes else undecoded).encode_all(texts)
    start, end = min(edges), max(edges)
    inside = encoded.within([[(start, min(end, len(text)))] for text in texts]).tolist()
    alone = [tokenizer.encode(text) for text in texts]
    assert encoded.ids.tolist() == [token for one in alone for token in one.ids]
    assert inside == [
        first < min(end, len(text)) and last > start
        for text, one in zip(texts, alone, strict=True)
        for first, last in one.offsets
    ]


def test_a_conversation_is_rendered_as_the_library_renders_it(tokenizer: Tokenizer) -> None:
    """Training on another text than a server will write is training for nothing."""
    messages = conversation([("Why?", "Because.")])
    for prompt in (False, True):
        theirs = tokenizer._fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        assert tokenizer.render(messages, generation_prompt=prompt) == theirs


@pytest.mark.parametrize(
    "example",
    [
        Example(1, prompt="2 + 2 =", completion=" 4"),
        Example(1, completion="To be, or not to be", continues=True),
        Example(1, conversation([("Why?", "So.")])),
        Example(1, input_ids=[5, 6, 7], labels=[5, 6, 7]),
    ],
)
def test_the_text_that_is_shown_of_a_row_is_what_its_ids_say(tokenizer: Tokenizer, example: Example) -> None:
    """A prompt without an end beside ids that have one looks like a model that never stops."""
    tokens = tokens_of(example, tokenizer, "response", 1000)
    assert whole_text(example, tokenizer) == tokenizer.decode(tokens.input_ids.tolist())
