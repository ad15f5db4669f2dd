"""Decoding several continuations together, measured against transformers' own generate."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, MistralConfig, PreTrainedModel

from engine.inl.configuration import InlConfig
from engine.inl.model import InlForCausalLM
from engine.model import decode, load
from engine.model.decode import Batch, Continuation, can_pad
from engine.model.generate import generate
from tests.tiny_models import make_tiny_model

STOPS = frozenset({0, 1, 2})
PROMPTS = [[5, 6, 7], [40], list(range(50, 70)), [9, 8, 7, 6, 5], list(range(100, 180)), [33, 44]]


@pytest.fixture(scope="module", params=["llama", "inl"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of each kind whose continuations can be padded."""
    if request.param == "inl":
        return random_inl()
    folder = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    return load.load_base(folder, dtype=torch.float32, on="cpu")


def random_inl() -> Any:
    """A small INL model in float64, all of whose weights matter: their start values are changed at random."""
    config = InlConfig(vocab_size=384, hidden_size=24, num_hidden_layers=2, num_iterations=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = InlForCausalLM(config).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(scope="module")
def sliding() -> Any:
    """A model whose cache forgets old tokens."""
    return random_model(MistralConfig(**SMALL, sliding_window=8))


SMALL: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def random_model(config: Any) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoModelForCausalLM.from_config(config).eval()


def alone(model: Any, prompt: Sequence[int], max_new_tokens: int) -> list[int]:
    """The answer of transformers to one prompt."""
    penalty = model.generation_config.repetition_penalty or 1.0
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(STOPS),
        pad_token_id=0,
        repetition_penalty=penalty,
    )
    ids = torch.tensor([list(prompt)])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    answer: list[int] = output[0, len(prompt) :].tolist()
    ends = [index for index, token in enumerate(answer) if token in STOPS]
    return answer[: ends[0]] if ends else answer


def run(batch: Batch) -> None:
    while batch.rows:
        batch.step()


def rows_of(prompts: Sequence[Sequence[int]], max_new_tokens: int = 12, **settings: Any) -> list[Continuation]:
    return [Continuation(prompt, max_new_tokens, STOPS, **settings) for prompt in prompts]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_batch_answers_as_transformers_answers_alone(model: Any, penalty: float) -> None:
    """Otherwise an answer would depend on what other callers ask at the same time."""
    model.generation_config.repetition_penalty = penalty
    try:
        rows = rows_of(PROMPTS)
        batch = Batch(model)
        batch.join(rows)
        run(batch)
        assert [row.ids for row in rows] == [alone(model, prompt, 12) for prompt in PROMPTS]
    finally:
        model.generation_config.repetition_penalty = 1.0


def test_late_and_leaving_continuations_change_no_other_answer(model: Any) -> None:
    """Callers come and go while others are answered."""
    expected = [alone(model, prompt, 20) for prompt in PROMPTS]
    rows = rows_of(PROMPTS, 20)
    leaving = Continuation(list(range(200, 300)), 50, STOPS)
    batch = Batch(model)
    batch.join([rows[0], leaving])
    for row in rows[1:]:
        batch.step()
        batch.join([row])
    batch.leave(leaving)
    batch.leave(leaving)
    assert leaving not in batch.rows
    run(batch)
    assert [row.ids for row in rows] == expected
    assert {row.finish_reason for row in rows} <= {"stop", "length"}


def test_stop_token_ends_an_answer_and_is_no_part_of_it(model: Any) -> None:
    """The text of an answer would end with a control token."""
    first, second, *_ = alone(model, [40], 5)
    (row,) = [Continuation([40], 5, {second})]
    batch = Batch(model)
    assert batch.join([row]) == [row]
    run(batch)
    assert (row.ids, row.newest, row.finish_reason) == ([first], second, "stop")


def test_seed_repeats_an_answer_in_any_company(model: Any) -> None:
    """A caller who repeats a call with its seed expects the answer of the first call."""
    settings = {"temperature": 0.9, "top_p": 0.8, "seed": 11}
    (single,) = rows_of([PROMPTS[2]], 15, **settings)
    batch = Batch(model)
    batch.join([single])
    run(batch)
    among = rows_of(PROMPTS, 15, **settings)
    batch.join(among[:2])
    batch.step()
    batch.join(among[2:])
    run(batch)
    (other,) = rows_of([PROMPTS[2]], 15, **settings | {"seed": 12})
    batch.join([other])
    run(batch)
    assert among[2].ids == single.ids
    assert other.ids != single.ids


def test_small_top_p_and_temperature_are_greedy(model: Any) -> None:
    """The most probable token must survive every setting."""
    rows = [*rows_of([PROMPTS[0]], temperature=1.0, top_p=1e-6), *rows_of([PROMPTS[0]], temperature=1e-6)]
    batch = Batch(model)
    batch.join(rows)
    run(batch)
    assert [row.ids for row in rows] == [alone(model, PROMPTS[0], 12)] * 2


def test_logprobs_are_those_of_the_model(model: Any) -> None:
    """Callers compare answers by their probabilities."""
    (row,) = rows_of([PROMPTS[3]], 6, with_logprobs=True)
    batch = Batch(model)
    batch.join([row, *rows_of(PROMPTS[:2])])
    run(batch)
    logits = model(torch.tensor([[*row.prompt, *row.ids]])).logits[0].log_softmax(-1)
    expected = [float(logits[len(row.prompt) - 1 + index, token].detach()) for index, token in enumerate(row.ids)]
    assert row.logprobs == pytest.approx(expected, abs=1e-4)


def test_padded_inl_rows_have_the_logits_of_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding must enter neither the running sums nor the counts, also after rows have left, joined and moved."""
    model = random_inl()
    read: list[tuple[list[Continuation], torch.Tensor]] = []

    def recorded(group: Any) -> torch.Tensor:
        logits: torch.Tensor = original(group)
        read.append((list(group.rows), logits))
        return logits

    original = decode._Padded.logits
    monkeypatch.setattr(decode._Padded, "logits", recorded)
    lengths = [12, 3, 30, 5, 18, 9]
    rows = [Continuation(prompt, n, STOPS) for prompt, n in zip(PROMPTS, lengths, strict=True)]
    batch = Batch(model)
    batch.join(rows[:3])
    for _ in range(4):
        batch.step()
    batch.join(rows[3:])
    batch.leave(rows[2])
    run(batch)
    assert len(read[-1][0]) < len(rows), "rows are removed while others go on"
    found: dict[Continuation, list[torch.Tensor]] = {}
    for group, logits in read:
        for row, each in zip(group, logits, strict=True):
            found.setdefault(row, []).append(each)
    for row in rows:
        whole = model(torch.tensor([[*row.prompt, *row.ids]]), use_cache=False).logits[0, len(row.prompt) - 1 :]
        steps = torch.stack(found[row])[: len(row.ids)]
        torch.testing.assert_close(steps, whole[: len(steps)], rtol=0, atol=1e-11)


def test_model_with_a_sliding_window_is_decoded_one_by_one(sliding: Any) -> None:
    """Padding would push real tokens out of the window."""
    assert not can_pad(sliding)
    rows = rows_of(PROMPTS, 20)
    batch = Batch(sliding)
    batch.join(rows[:3])
    batch.step()
    batch.join(rows[3:])
    run(batch)
    assert [row.ids for row in rows] == [alone(sliding, prompt, 20) for prompt in PROMPTS]


def test_models_that_can_be_padded_are(model: Any) -> None:
    """Many callers would wait for each other."""
    assert can_pad(model)


def test_answers_are_told_as_soon_as_they_are_complete(model: Any) -> None:
    """An evaluation that is stopped keeps the answers that it has."""
    prompts = [[5 + n % 7] * (1 + n % 50) for n in range(70)]
    told: list[tuple[int, list[int]]] = []
    steps: list[int] = []
    answers = generate(
        model,
        prompts,
        max_new_tokens=5,
        stop_ids=[0, 1, 2],
        on_tokens=lambda tokens: steps.append(len(tokens)),
        on_answer=lambda index, ids: told.append((index, list(ids))),
    )
    assert sorted(told) == list(enumerate(answers))
    assert max(steps) <= 32
    assert [told_index for told_index, _ in told] != list(range(70)), "they come in the order of their ends"
    assert answers[:8] == [alone(model, prompt, 5) for prompt in prompts[:8]]


def test_no_prompts_have_no_answers(model: Any) -> None:
    """An evaluation without questions must end."""
    assert generate(model, [], max_new_tokens=5, stop_ids=[2]) == []
