"""Adapters of every kind beside each other on one base model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.config.job import Lora
from engine.model import load
from engine.model.adapter import attach_lora, load_adapter
from services.evaluator.resident import adapters
from services.evaluator.resident.adapters import Adapters
from tests.tiny_models import make_tiny_tokenizer

SHARING: Final[Mapping[str, dict[str, Any]]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True, "r": 8},
    "pissa": {"init_lora_weights": "pissa"},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "q_proj"]},
    "some layers": {"layers_to_transform": [1]},
}
"""Kinds of adapters that are used beside others; the gateway calls all others exclusive."""
PROMPT: Final = torch.tensor([[1, 5, 30, 40, 2, 70]])


@pytest.fixture(scope="module", params=[False, True], ids=["own head", "tied head"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_tokenizer(tmp_path_factory.mktemp("model"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=request.param,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One saved adapter of each kind, all of whose weights differ from their initial values."""
    folders = {}
    for number, (kind, settings) in enumerate(SHARING.items()):
        torch.manual_seed(number)
        adapted = attach_lora(
            _base(base), Lora(**{"r": 4, **settings}),
            model_dir=base, base_id="tiny", revision="local", quantised=False, gradient_checkpointing=False,
        )  # fmt: skip
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn_like(parameter)
        folders[kind] = tmp_path_factory.mktemp("adapters") / f"{number:064}"
        adapted.save_pretrained(str(folders[kind]))
    return folders


def _base(folder: Path) -> Any:
    return load.load_base(folder, dtype=torch.float32, on="cpu")


def _scores(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=PROMPT).logits


@pytest.fixture(scope="module")
def alone(base: Path, trained: dict[str, Path]) -> dict[str, torch.Tensor]:
    """The scores of each model in a process of its own; "" is the base model."""
    return {"": _scores(_base(base))} | {
        kind: _scores(load_adapter(_base(base), folder)) for kind, folder in trained.items()
    }


def test_kinds_of_adapters_do_not_change_each_other(
    base: Path, trained: dict[str, Path], alone: dict[str, torch.Tensor]
) -> None:
    """Callers who share a base model must each be answered by the model that they trained, after any other."""
    model = _base(base)
    shared = Adapters(model)
    order = ["", *trained, "", *reversed(trained), *(name for kind in trained for name in (kind, "", "lora"))]
    for place, kind in enumerate(order):
        folder = trained.get(kind)
        shared.use(folder, busy=trained.values())
        assert torch.equal(_scores(model), alone[kind]), (kind, "after", order[:place][-3:])
    assert len({scores.numpy().tobytes() for scores in alone.values()}) == len(alone), (
        "the test needs models that differ"
    )


def test_dropped_adapters_leave_nothing_behind(
    base: Path, trained: dict[str, Path], alone: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base model that serves many jobs for days must not fill the memory, nor answer with one that was dropped."""
    monkeypatch.setattr(adapters, "_MAX_ADAPTERS", 2)
    model = _base(base)
    shared = Adapters(model)
    sizes = []
    for _ in range(3):
        for kind, folder in trained.items():
            shared.use(folder, busy=[])
            assert torch.equal(_scores(model), alone[kind]), kind
        shared.use(None, busy=[])
        assert torch.equal(_scores(model), alone[""])
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
    assert len(set(sizes)) == 1, sizes
