"""Measures the memory of one training in a new process: parameters, optimizer state, saved tensors, peak.

`python -m benchmarks.training_memory CONFIGURATION MODEL` creates the model if its folder does not exist; otherwise it
trains the model and prints one JSON object. It runs the trainer's own recipe; a subclass of its Trainer records the
tensors that autograd saves in the last step.
"""

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.estimate.known_architectures import CONFIGS
from services.quiet_environment import quiet_environment

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 2},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 4, "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "num_key_value_heads": 2},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 64},
    "gemma2": {"model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 64, "attn_logit_softcapping": 50.0},
    "gemma3": {"model_type": "gemma3_text", "num_key_value_heads": 1, "head_dim": 64},
    "phi3": {"model_type": "phi3", "num_key_value_heads": 4, "pad_token_id": 0, "eos_token_id": 2},
    "inl": {"model_type": "inl", "num_iterations": 5},
}


@dataclass(frozen=True)
class Configuration:
    """A small model and the settings of its training."""

    family: str = "llama"
    method: str = "lora"
    precision: str = "fp32"
    rows: int = 4
    length: int = 256
    checkpointing: bool = False
    r: int = 16
    dropout: float = 0.05
    optimizer: str = "adamw_torch"
    accumulation: int = 1
    bits: int = 4
    double_quant: bool = True
    hidden: int = 256
    layers: int = 4
    vocabulary: int = 4096
    trained_share: float = 0.5

    @property
    def model_config(self) -> dict[str, Any]:
        if self.family in CONFIGS:
            return dict(CONFIGS[self.family])
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.hidden * 11 // 4,
            "num_hidden_layers": self.layers,
            "num_attention_heads": 4,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
            **FAMILIES[self.family],
        }

    @property
    def spec(self) -> dict[str, Any]:
        """The spec of a job with these settings."""
        return {
            "base_model": "small",
            "recipe": "finetuneflow",
            "training_data": [{"dataset": "d"}],
            "method": self.method,
            "holdout_fraction": 0.0,
            "lora": {"r": self.r, "lora_dropout": self.dropout},
            "quantization": {"bits": self.bits, "bnb_4bit_use_double_quant": self.double_quant},
            "hyperparameters": {
                "precision": self.precision,
                "optim": self.optimizer,
                "gradient_checkpointing": self.checkpointing,
                "per_device_train_batch_size": self.rows,
                "gradient_accumulation_steps": self.accumulation,
                "max_length": self.length,
            },
        }


def make(configuration: Configuration, folder: Path) -> None:
    """Writes the model's files to a new folder. Runs in its own process, whose memory the training must not inherit."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from engine.inl.auto_classes import register_inl
    from tests.tiny_models import make_tiny_tokenizer

    register_inl()
    values = dict(configuration.model_config)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    model.save_pretrained(make_tiny_tokenizer(folder))


def write_rows(configuration: Configuration, count: int, folder: Path) -> None:
    """Writes training rows as preflight writes them. Half of them are shorter, so that most batches are padded."""
    from datasets import Dataset

    given = round(configuration.length * (1 - configuration.trained_share))
    rows = []
    for number in range(count):
        length = configuration.length if number % 2 else configuration.length - 8
        ids = [(number + position) % 300 + 5 for position in range(length)]
        rows.append({"input_ids": ids, "labels": [-100] * given + ids[given:]})
    Dataset.from_list(rows).save_to_disk(str(folder / "train"))


def measure(configuration: Configuration, model: Path, folder: Path, threads: int = 1) -> dict[str, Any]:
    """Trains two steps and measures the second, in bytes; peak_bytes is the process's highest resident memory."""
    import torch

    from chassis.child.pipe import EventSink
    from engine.config.job import job_config
    from services.child_input import ModelFiles
    from services.trainer.worker import recipe
    from services.trainer.worker.child_input import TrainingInput
    from services.trainer.worker.loss import Trainer

    steps = 2
    write_rows(configuration, configuration.rows * configuration.accumulation * steps, folder / "data")
    seen: dict[str, Any] = {}

    class Watched(Trainer):
        _calls = 0

        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            self._calls += 1
            if self._calls < steps * configuration.accumulation:
                return super().compute_loss(model, inputs, *arguments, **options)
            return self._watched(model, inputs, *arguments, **options)

        def _watched(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
            saved: dict[int, torch.Tensor] = {}

            def keep(tensor: torch.Tensor) -> torch.Tensor:
                address = tensor.untyped_storage().data_ptr()
                if address not in parameters and address not in _quantisation(model):
                    saved.setdefault(address, tensor)
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = super().compute_loss(model, inputs, *arguments, **options)
            mask = inputs.get("attention_mask")
            seen.update(
                saved_bytes=sum(tensor.untyped_storage().nbytes() for tensor in saved.values()),
                length=inputs["input_ids"].shape[1],
                padded=bool((mask == 0).any()),
                positions=int((inputs["labels"][:, 1:] != -100).sum()),
                base_bytes=_base_bytes(model),
                trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
                trained_bytes=sum(p.nbytes for p in model.parameters() if p.requires_grad),
            )
            states = self.optimizer.state.values() if self.optimizer is not None else ()
            seen["optimizer_bytes"] = sum(
                value.nbytes for state in states for value in state.values() if isinstance(value, torch.Tensor)
            )
            # References held here would keep tensors from being freed during the backward pass.
            saved.clear()
            return loss

    vars(recipe)["Trainer"] = Watched
    config = job_config(configuration.spec)
    spec = TrainingInput(
        config=config,
        model=ModelFiles(path=model, id="small", revision="r1", weights_sha256="0" * 64),
        data_dir=folder / "data",
        out_dir=folder / "out",
        total_steps=steps,
        threads=threads,
    )
    spec.out_dir.mkdir()
    result = recipe.train(spec, EventSink(None, None))
    return {**seen, "peak_bytes": result.peak_memory_bytes}


def _quantisation(model: Any) -> set[int]:
    import torch

    found = set()
    for module in model.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        for tensor in _states(state):
            found.add(tensor.untyped_storage().data_ptr())
    return found | {
        t.untyped_storage().data_ptr()
        for m in model.modules()
        for t in (getattr(getattr(m, "state", None), "CB", None), getattr(getattr(m, "state", None), "SCB", None))
        if isinstance(t, torch.Tensor)
    }


def _states(state: Any) -> list[Any]:
    if state is None:
        return []
    inner = state.state2
    found = [state.absmax, state.code, state.offset, *([inner.absmax, inner.code] if inner is not None else [])]
    return [tensor for tensor in found if tensor is not None]


def _base_bytes(model: Any) -> int:
    """Returns the bytes of the base model: parameters, and scales of quantised ones."""
    total = 0
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        total += parameter.untyped_storage().nbytes()
        total += sum(tensor.nbytes for tensor in _states(getattr(parameter, "quant_state", None)))
        scale = getattr(parameter, "SCB", None)
        total += scale.nbytes if scale is not None else 0
    return total


def main() -> None:
    configuration, model = Configuration(**json.loads(sys.argv[1])), Path(sys.argv[2])
    if not model.exists():
        make(configuration, model)
        return
    quiet_environment()
    with tempfile.TemporaryDirectory() as folder:
        seen = measure(configuration, model, Path(folder))
    print(json.dumps({"configuration": asdict(configuration), **seen}))


if __name__ == "__main__":
    main()
