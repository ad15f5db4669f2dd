"""Exported adapters follow the rules that vLLM publishes for those it loads."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from engine.config.job import Lora
from engine.model.adapter import attach_lora
from services.exporter.worker.child_input import ExportInput
from tests.services.exporter.conftest import resolved
from tests.services.exporter.test_merged import export


def vllm_violations(folder: Path, layers: dict[str, tuple[int, int]], max_lora_rank: int) -> list[str]:
    """What vLLM refuses about an adapter. `layers`: (output, input) of each linear layer of the base model by its path.

    The rules, as of vLLM 0.33:
    - vllm/lora/peft_helper.py: r, lora_alpha and target_modules are required; no DoRA, no lora_bias, no trained biases,
      no modules_to_save but classifier and score, no initial values that change the base weights, a rank of at least 1
      and at most max_lora_rank.
    - vllm/lora/utils.py, parse_fine_tuned_lora_name: a tensor is base_model.model.<layer>.lora_A.weight or
      base_model.model.<layer>.lora_B.weight.
    - vllm/lora/lora_model.py: the last part of the layer's path names a linear layer of the model; A is [r, input], B
      is [output, r].
    """
    config = json.loads((folder / "adapter_config.json").read_text())
    found = [f"no {name}" for name in ("r", "lora_alpha", "target_modules") if config.get(name) is None]
    found += [name for name in ("use_dora", "lora_bias") if config.get(name)]
    found += ["bias"] * (config.get("bias", "none") != "none")
    found += ["modules_to_save"] * bool(set(config.get("modules_to_save") or ()) - {"classifier", "score"})
    initial = config.get("init_lora_weights", True)
    found += ["init_lora_weights"] * (isinstance(initial, str) and initial not in ("gaussian", "eva", "orthogonal"))
    found += ["rank"] * (not 0 < config["r"] <= max_lora_rank)
    with safe_open(folder / "adapter_model.safetensors", "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
            match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
            if match is None or match[1] not in layers:
                found.append(name)
                continue
            rows, columns = layers[match[1]]
            expected = [config["r"], columns] if match[2] == "A" else [rows, config["r"]]
            found += [f"shape of {name}"] * (tensors.get_slice(name).get_shape() != expected)
    return found


@pytest.mark.parametrize("settings", [{}, {"init_lora_weights": "pissa"}, {"use_dora": True}])
def test_adapter_that_is_called_servable_follows_the_rules_of_vllm(
    export_input: ExportInput, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """A command in the package that ends in an error is worse than none."""
    base = export_input.model.path
    model = AutoModelForCausalLM.from_pretrained(base)
    layers = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    lora = Lora(r=4, lora_alpha=8.0, **settings)
    adapted = attach_lora(
        model, lora, model_dir=base, base_id="tiny", revision="r1", quantised=False, gradient_checkpointing=False
    )
    adapted.save_pretrained(str(tmp_path / "adapter"))
    config = resolved(lora={"r": 4, "lora_alpha": 8.0, **settings})
    result = export(export_input, tmp_path, config=config, adapter_dir=tmp_path / "adapter")
    (vllm,) = [each for each in result.servable_by if each.reader == "vllm"]
    rank = re.search(r"--max-lora-rank (\d+)", vllm.command)
    violations = vllm_violations(export_input.out_dir, layers, int(rank[1]) if rank else 512)
    assert bool(violations) == bool(vllm.refusal), violations
    text = (export_input.out_dir / "README.md").read_text()
    assert (vllm.command or vllm.refusal) in text and "| llama.cpp |" in text
