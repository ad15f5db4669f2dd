"""INL models: what they compute, and that transformers, peft and the engine handle them like any other model."""

import copy
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, DataCollatorWithFlattening, DynamicCache

from engine.config.job import Lora, Quantization
from engine.estimate.architecture import Architecture
from engine.estimate.known_architectures import known
from engine.inl.auto_classes import register_inl
from engine.inl.cache import InlCache
from engine.inl.configuration import InlConfig
from engine.inl.model import InlForCausalLM, InlLayer
from engine.inl_sizes import SIZES
from engine.model import load
from engine.model.adapter import attach_lora
from engine.model.generate import generate
from engine.model.score import score

_COUNTS = {
    "inl-small": 43_087_872,
    "inl-medium": 111_896_832,
    "inl-large": 303_547_392,
    "inl-xlarge": 807_850_496,
    "inl-3b": 1_698_168_832,
    "inl-4b": 2_524_171_008,
}
_VOCABULARY = 16


def _model(seed: int = 0, *, change: float = 0.3, dtype: torch.dtype = torch.float64, **settings: Any) -> Any:
    """Returns a small model in evaluation mode. All weights are changed at random from their start values, so that each
    of them matters; `change` is the standard deviation."""
    values = {"vocab_size": _VOCABULARY, "hidden_size": 24, "num_hidden_layers": 2, "num_iterations": 4}
    torch.manual_seed(seed)
    model = InlForCausalLM(InlConfig(**{**values, "max_position_embeddings": 64, **settings})).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += change * torch.randn_like(parameter)
    return model.eval()


def _ids(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(_VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Operations this small take far longer with several threads on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> Any:
    return _model()


@pytest.mark.parametrize(("name", "count"), _COUNTS.items())
def test_named_sizes_have_the_parameters_of_the_guide(name: str, count: int) -> None:
    """The estimate, which never sees the model, must count the same, and know its linear layers."""
    register_inl()
    config = SIZES[name].config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    assert isinstance(model, InlForCausalLM)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    block: Any = model.model.layers[0]
    linears = [(n, m) for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)]
    assert {(layer.name, layer.rows, layer.columns, layer.bias) for layer in known(name).linears} == {
        (n, m.out_features, m.in_features, m.bias is not None) for n, m in linears
    }


def test_later_tokens_have_no_influence_at_all(model: Any) -> None:
    """A model that sees the token it predicts has a loss that means nothing."""
    ids = _ids(2, 12)
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 5) % _VOCABULARY
    with torch.no_grad():
        assert torch.equal(model(ids).logits[:, :7], model(changed).logits[:, :7])
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    model(inputs_embeds=embedded).logits[:, 6].square().sum().backward()
    assert torch.count_nonzero(embedded.grad[:, 7:]) == 0
    assert torch.count_nonzero(embedded.grad[:, :7]) == embedded[:, :7].numel()


def test_other_rows_of_the_batch_have_no_influence(model: Any) -> None:
    ids = _ids(3, 10)
    with torch.no_grad():
        together = model(ids).logits
        for row in range(3):
            torch.testing.assert_close(together[row : row + 1], model(ids[row : row + 1]).logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_padding_has_no_influence(model: Any, side: str) -> None:
    """Positions count from the first real token, and padding enters no average."""
    ids = _ids(1, 9)
    before, after = {"left": (4, 0), "right": (0, 4), "both": (3, 2)}[side]
    mask = functional.pad(torch.ones_like(ids), (before, after))
    for filler in (0, 7):
        padded = functional.pad(ids, (before, after), value=filler)
        with torch.no_grad():
            logits = model(padded, attention_mask=mask).logits[:, before : before + 9]
            torch.testing.assert_close(logits, model(ids).logits, rtol=0, atol=1e-12)


def test_padding_enters_no_loss(model: Any) -> None:
    """Whatever labels it has."""
    ids = _ids(2, 9)
    padded, mask = functional.pad(ids, (0, 3)), functional.pad(torch.ones_like(ids), (0, 3))
    torch.testing.assert_close(
        model(padded, attention_mask=mask, labels=padded).loss, model(ids, labels=ids).loss, rtol=0, atol=1e-6
    )


def test_start_values_are_those_of_the_design() -> None:
    """Whatever the input: the last layers of the controllers start at zero."""
    model = _model(change=0)
    layer: InlLayer = model.model.layers[0]
    average = layer.controllers.from_average(torch.randn(2, 3, 24, dtype=torch.float64))
    random = torch.randn(2, 3, 24, dtype=torch.float64)
    alpha, beta, gate, target = layer.controllers(average, random, random)
    for values, start in ((alpha, 0.8), (beta, 0.5), (gate, 0.5), (target, 0.0)):
        torch.testing.assert_close(values, torch.full_like(values, start), rtol=0, atol=1e-6)
    assert torch.count_nonzero(layer.mu) == 0
    # Not less: from the first step on, every weight but those behind a zero one is trained.
    model.train()
    model(_ids(2, 8), labels=_ids(2, 8)).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.lm_head.bias is None
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(0.02, rel=0.15)


def test_a_block_computes_the_equations() -> None:
    """Position by position, as the design states them: four controllers on [h, s, v], α damped by the distance."""
    model = _model(3)
    layer: InlLayer = model.model.layers[0]
    inputs = torch.randn(1, 5, 24, dtype=torch.float64)
    with torch.no_grad():
        tokens = model.model._tokens(inputs, None, None, None)
        found = layer(inputs, tokens)
        u = layer.context_norm(inputs)
        c = layer.context(u)[0]
        control = layer.controllers
        parts = (control.from_average, control.from_state, control.from_velocity)
        first = torch.cat([part.weight for part in parts], dim=1)
        for i in range(5):
            h, s, v = c[: i + 1].mean(0), u[0, i], torch.zeros(24).double()
            for t in range(4):
                hidden = torch.relu(first @ torch.cat([h, s, v]) + control.from_average.bias)
                a, b, g, aim = (
                    head(part)
                    for head, part in zip(
                        (control.alpha, control.beta, control.gate, control.target), hidden.split(64), strict=True
                    )
                )
                alpha = a.sigmoid() * (1 - torch.exp(-(s - layer.mu).norm() / math.sqrt(24)))
                beta, gate = functional.softplus(b).clamp(max=10), g.sigmoid()
                noise = 0.03 * torch.sin(layer.frequency * t + layer.phase)
                v = alpha * v + (1 - alpha) * aim - beta * (s - layer.mu) + noise
                s = s + 0.1 * gate * v
            x = inputs[0, i] + s
            x = x + layer.feed_forward(layer.feed_forward_norm(x))
            torch.testing.assert_close(found[0, i], x, rtol=0, atol=1e-10)


def test_integration_is_stable_at_the_largest_attraction() -> None:
    """Without a limit of β the state would grow until it is not finite."""
    model = _model(4, num_iterations=300)
    layer: InlLayer = model.model.layers[0]
    with torch.no_grad():
        for controller in (layer.controllers.beta, layer.controllers.gate, layer.controllers.alpha):
            controller.bias.fill_(1e6)
        # A target that follows the state could drive it anywhere.
        layer.controllers.target.weight.zero_()
        layer.mu.fill_(3.0)
        state = layer._integrated(*torch.randn(2, 1, 2, 24, dtype=torch.float64))
    assert state.abs().max() < 50


def _trained(batches: Iterable[torch.Tensor]) -> Any:
    """Returns a model of one block in evaluation mode, after a step for each batch of token ids."""
    settings = {"hidden_size": 32, "num_hidden_layers": 1, "position_scale": 0.03, "dropout": 0.0}
    model = _model(change=0, dtype=torch.float32, **settings).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for ids in batches:
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def test_random_tokens_cannot_be_predicted() -> None:
    """A held-out loss below ln V on independent random tokens would show a leak: with averages over whole rows, it is
    1.5 here."""
    model = _trained(_ids(64, 3, seed=step) for step in range(200))
    held_out = _ids(5000, 3, seed=10**6)
    with torch.no_grad():
        loss = model(held_out, labels=held_out).loss.item()
    assert loss > math.log(_VOCABULARY) - 0.01


@pytest.mark.long
def test_earlier_tokens_can_be_used() -> None:
    """Each second token repeats the first one, which only the average of earlier tokens tells."""

    def row(seed: int) -> torch.Tensor:
        ids = torch.zeros(32, 6, dtype=torch.long)
        ids[:, ::2] = 1 + _ids(32, 1, seed=seed) % (_VOCABULARY - 1)
        return ids

    model = _trained(row(step) for step in range(500))
    with torch.no_grad():
        loss = model(row(10**6), labels=row(10**6)).loss.item()
    # Without them: ln 15 at two of five positions.
    assert loss < 0.6 * math.log(15) * 2 / 5


def test_cached_decoding_equals_full_decoding(model: Any) -> None:
    ids = _ids(2, 14)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.no_grad():
        full = model(ids, attention_mask=mask, use_cache=False).logits
        cache, parts = None, []
        # A prompt, some tokens at once, then one by one; the mask with and without the tokens read before.
        for start, end, seen in ((0, 6, 0), (6, 9, 6), *((n, n + 1, n if n % 2 else 0) for n in range(9, 14))):
            output = model(
                ids[:, start:end],
                attention_mask=mask[:, start - seen : end],
                past_key_values=cache,
                use_cache=True,
            )
            cache = output.past_key_values
            parts.append(output.logits)
    assert isinstance(cache, InlCache)
    real = mask.bool()
    torch.testing.assert_close(torch.cat(parts, 1)[real], full[real], rtol=0, atol=1e-12)
    # One sum for each layer and row, however long the input was.
    assert [layer.total.untyped_storage().nbytes() for layer in cache.layers] == [2 * 24 * 8] * 2
    assert cache.counts.tolist() == [11, 14]
    assert cache.get_seq_length() == 14


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "top_p": 0.9},
        {"num_beams": 3},
        {"num_return_sequences": 2, "do_sample": True},
    ],
    ids=["greedy", "sampling", "beams", "several"],
)
def test_generate_with_and_without_cache_agree(model: Any, options: dict[str, Any]) -> None:
    ids = _ids(2, 6)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    found = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        found.append(model.generate(ids, attention_mask=mask, max_new_tokens=12, use_cache=use_cache, **options))
    assert torch.equal(*found)


def test_a_generation_continues_with_its_cache(model: Any) -> None:
    """As a chat does, which reads each turn once."""
    ids = _ids(1, 6)
    begun = model.generate(ids, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    continued = model.generate(
        begun.sequences, past_key_values=begun.past_key_values, max_new_tokens=5, do_sample=False
    )
    assert torch.equal(continued, model.generate(ids, max_new_tokens=10, do_sample=False))


def test_padded_prompts_continue_as_each_alone(model: Any) -> None:
    ids, mask = _ids(2, 7), torch.ones(2, 7, dtype=torch.long)
    mask[1, :3] = 0
    together = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    alone = model.generate(ids[1:, 3:], max_new_tokens=8, do_sample=False)
    assert torch.equal(together[1, 3:], alone[0])


def test_the_engine_generates_and_scores_with_it(model: Any) -> None:
    """The evaluator and the served model do so, for rows and prompts of different lengths."""
    prompts = [_ids(1, length, seed=length)[0].tolist() for length in (3, 5, 8)]
    answers = generate(model, prompts, max_new_tokens=6, stop_ids=[])
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)
        assert answer == expected[0, len(prompt) :].tolist()
    rows = [{"input_ids": prompt, "labels": prompt} for prompt in prompts]
    sums = [model(torch.tensor([p]), labels=torch.tensor([p])).loss.item() * (len(p) - 1) for p in prompts]
    found = score(model, rows, lambda _: None)
    assert found.loss == pytest.approx(sum(sums) / found.num_trained_tokens, rel=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_gives_equal_gradients(reentrant: bool) -> None:
    """Without it, training needs ten values of the hidden size for each token and iteration."""
    gradients = []
    for checkpointing in (False, True):
        model = _model(dropout=0.1).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        torch.manual_seed(7)
        model(_ids(2, 10), labels=_ids(2, 10)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=0)


def test_documents_of_a_packed_row_do_not_influence_each_other(model: Any) -> None:
    """As transformers and TRL pack rows: positions that start anew, and no mask."""
    documents = [_ids(1, length, seed=length)[0] for length in (4, 1, 7)]
    batch = DataCollatorWithFlattening(return_flash_attn_kwargs=True)([{"input_ids": d.tolist()} for d in documents])
    assert batch.pop("labels").shape == (1, 12)
    with torch.no_grad():
        packed = model(**batch, use_cache=False).logits[0]
        alone = torch.cat([model(document[None]).logits[0] for document in documents])
        torch.testing.assert_close(packed, alone, rtol=0, atol=1e-12)
        # Several rows, with padding on both sides.
        ids = torch.stack([functional.pad(batch["input_ids"][0], pad) for pad in ((2, 1), (0, 3))])
        positions = torch.stack([functional.pad(batch["position_ids"][0], pad) for pad in ((2, 1), (0, 3))])
        mask = torch.stack([functional.pad(torch.ones(12, dtype=torch.long), pad) for pad in ((2, 1), (0, 3))])
        padded = model(ids, position_ids=positions, attention_mask=mask, use_cache=False).logits
    torch.testing.assert_close(padded[mask.bool()], torch.cat([alone, alone]), rtol=0, atol=1e-12)


def test_what_is_not_supported_is_refused(model: Any) -> None:
    """Ignored, each would give a wrong loss or text."""
    ids = _ids(1, 6)
    restarted = torch.tensor([[0, 1, 2, 0, 1, 2]])
    for problem, arguments in {
        "one of input_ids and inputs_embeds": {"input_ids": None},
        r"attention_mask must be \[rows, 6\]": {"attention_mask": torch.ones(1, 1, 6, 6)},
        "several documents": {"position_ids": restarted, "use_cache": True},
        "recognised by position_ids": {"seq_idx": torch.zeros(1, 6)},
        "not a DynamicCache": {"past_key_values": DynamicCache()},
        "no attention": {"output_attentions": True},
    }.items():
        with pytest.raises(ValueError, match=problem):
            model(**{"input_ids": ids, **arguments})
    with pytest.raises(ValueError, match="stateful"):
        model.generate(ids, assistant_model=model, max_new_tokens=2)


def test_inputs_beyond_the_context_are_refused(model: Any) -> None:
    """Positions beyond it were never trained."""
    with torch.no_grad():
        model(_ids(1, 64))
        for arguments in (
            {"input_ids": _ids(1, 65)},
            {"input_ids": _ids(1, 2), "position_ids": torch.tensor([[63, 64]])},
        ):
            with pytest.raises(ValueError, match=r"65 tokens; the context of the model is 64"):
                model(**arguments)
        # Padding does not count.
        mask = functional.pad(torch.ones(1, 60, dtype=torch.long), (10, 0))
        cache = model(_ids(1, 70), attention_mask=mask, use_cache=True).past_key_values
        for _ in range(4):
            model(_ids(1, 1), past_key_values=cache)
        with pytest.raises(ValueError, match="65 tokens"):
            model(_ids(1, 1), past_key_values=cache)


def test_accumulated_losses_add_up_to_that_of_the_batch(model: Any) -> None:
    """The Trainer divides the sum of all micro-batches by the tokens of the step."""
    ids = _ids(4, 9)
    labels = ids.clone()
    labels[0, :6] = -100
    total = (labels[:, 1:] != -100).sum()
    parts = [model(ids[i : i + 2], labels=labels[i : i + 2], num_items_in_batch=total).loss for i in (0, 2)]
    torch.testing.assert_close(sum(parts), model(ids, labels=labels).loss, rtol=1e-6, atol=0)


def test_training_continues_from_a_checkpoint_with_equal_losses(tmp_path: Path) -> None:
    def losses(model: Any, optimizer: Any, steps: range) -> list[float]:
        found = []
        for step in steps:
            torch.manual_seed(step)
            loss = model(_ids(2, 12, seed=step), labels=_ids(2, 12, seed=step)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
        return found

    model = _model(dropout=0.1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses(model, optimizer, range(3))
    model.save_pretrained(tmp_path / "checkpoint")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    expected = losses(model, optimizer, range(3, 6))
    resumed = InlForCausalLM.from_pretrained(tmp_path / "checkpoint").train()
    optimizer = torch.optim.AdamW(resumed.parameters(), lr=1e-3)
    optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert losses(resumed, optimizer, range(3, 6)) == expected


def test_a_saved_model_is_loaded_by_the_engine(tmp_path: Path) -> None:
    model = _model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    ids = _ids(2, 10)
    expected = model(ids).logits
    found = load.load_base(tmp_path, dtype=torch.float32, on="cpu")
    assert type(found) is InlForCausalLM
    assert torch.equal(found(ids).logits, expected)
    assert Architecture.of_folder(tmp_path).num_parameters == sum(p.numel() for p in model.parameters())
    for dtype in (torch.bfloat16, torch.float16):
        lower = load.load_base(tmp_path, dtype=dtype, on="cpu")
        logits = lower(ids).logits
        assert logits.dtype == dtype
        torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.5)


def test_sums_and_states_have_32_bits_in_16_bit_models() -> None:
    """In bfloat16 a sum of equal values stands still after some hundred tokens, and the mean falls."""
    model = _model(dtype=torch.bfloat16, max_position_embeddings=4096).model
    tokens = model._tokens(torch.empty(1, 4096, 24), None, None, None)
    seen: list[torch.dtype] = []
    layer = model.layers[0]
    layer._integrated = lambda state, average: (seen.append(state.dtype), state)[1]
    values = torch.full((1, 4096, 24), 0.1)
    torch.testing.assert_close(tokens.mean_so_far(values, None), values, rtol=1e-4, atol=0)
    layer(torch.ones(1, 4096, 24, dtype=torch.bfloat16), tokens)
    assert seen == [torch.float32]


def test_initial_weights_follow_from_the_seed() -> None:
    first, again, other = (_model(seed, change=0).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert not torch.equal(first["model.layers.0.phase"], other["model.layers.0.phase"])


def test_adapters_attach_to_all_linear_layers(tmp_path: Path) -> None:
    """And change the controllers at each of their iterations."""
    model = _model(dtype=torch.float32)
    before = copy.deepcopy(model)
    lora = Lora(r=2, lora_alpha=4, lora_dropout=0.0)
    adapted = attach_lora(
        model, lora, model_dir=tmp_path, base_id="inl-tiny", revision="", quantised=False, gradient_checkpointing=False
    )
    attached = {name.rpartition(".lora_A")[0] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert len(attached) == 2 * len(known("inl-small").linears)
    ids = _ids(2, 10)
    torch.testing.assert_close(adapted(input_ids=ids).logits, before(ids).logits, rtol=0, atol=1e-6)
    adapted.train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    # All adapters are trained: each layer is called as a module, not by its weights.
    changed = [p for name, p in adapted.named_parameters() if "lora_B" in name]
    assert all(torch.count_nonzero(weight) for weight in changed)
    merged = adapted.eval().merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, adapted(input_ids=ids).logits, rtol=0, atol=1e-4)


def test_autocast_and_quantised_weights_train(tmp_path: Path) -> None:
    """Precision bf16 on a CPU uses autocast, and method qlora 4-bit weights: both must have finite gradients."""
    model = _model(change=0.1, dtype=torch.float32, hidden_size=64, vocab_size=64)
    model.save_pretrained(tmp_path)
    ids = _ids(2, 10)
    expected = model(ids, labels=ids).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).loss
    assert loss.item() == pytest.approx(expected, rel=0.05)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    quantised = load.load_base(tmp_path, dtype=torch.float32, on="cpu", quantization=Quantization())
    assert sum(isinstance(module, Linear4bit) for module in quantised.modules()) == 2 * len(known("inl-small").linears)
    adapted = attach_lora(
        quantised,
        Lora(r=2),
        model_dir=tmp_path,
        base_id="inl-tiny",
        revision="",
        quantised=True,
        gradient_checkpointing=True,
    ).train()
    loss = adapted(input_ids=ids, labels=ids).loss
    assert loss.item() == pytest.approx(expected, rel=0.3)
    loss.backward()
    gradients = [p.grad for name, p in adapted.named_parameters() if "lora_B" in name]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
