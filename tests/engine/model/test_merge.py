"""A merged model is what peft makes of base and adapter, tensor by tensor."""

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from engine.config.job import Lora, Quantization
from engine.errors import JobError
from engine.model import load
from engine.model.adapter import attach_lora, load_adapter
from engine.model.merge import Quantised, differences, merge
from tests.tiny_models import make_tiny_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def make(folder: Path, family: str) -> Path:
    make_tiny_tokenizer(folder)
    torch.manual_seed(0)
    models: dict[str, Any] = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
        "tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
        "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=16)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=384, n_embd=64, n_layer=2, n_head=4)),
    }
    model = models[family]()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder, max_shard_size="60KB")
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Path] = {}

    def base(family: str) -> Path:
        if family not in made:
            made[family] = make(tmp_path_factory.mktemp(family) / "model", family)
        return made[family]

    return base


def trained(base: Path, lora: Lora, folder: Path, quantization: Quantization | None = None) -> Path:
    """Saves an adapter after three steps that change it much."""
    torch.manual_seed(1)
    model = load.load_base(base, dtype=torch.float32, on="cpu", quantization=quantization)
    adapted = attach_lora(
        model, lora, model_dir=base, base_id="tiny", revision="r1", quantised=quantization is not None,
        gradient_checkpointing=False,
    )  # fmt: skip
    adapted.train()
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        ids = torch.arange(5, 25)[None]
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(str(folder))
    return folder


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(5, 45)[None]).logits
    return found


def merged(base: Path, adapter: Path | None, folder: Path, **options: Any) -> Any:
    folder.mkdir()
    merge(base, adapter, folder, **options)
    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("llama", Lora()),
        ("llama", Lora(use_rslora=True)),
        ("llama", Lora(use_dora=True)),
        ("llama", Lora(init_lora_weights="pissa")),
        ("llama", Lora(modules_to_save=["lm_head"])),
        ("llama", Lora(target_modules=["q_proj", "lm_head"])),
        ("llama", Lora(trainable_tokens=["<|im_end|>", "<|im_start|>"])),
        ("qwen2", Lora(bias="all")),
        ("qwen2", Lora(bias="lora_only", target_modules=["q_proj"])),
        ("tied", Lora()),
        ("tied", Lora(modules_to_save=["lm_head"])),
        ("tied", Lora(modules_to_save=["embed_tokens"])),
        ("tied", Lora(modules_to_save=["embed_tokens", "lm_head"])),
        ("tied", Lora(trainable_tokens=["<|im_end|>", "<|im_start|>"])),
        ("gemma3", Lora(use_dora=True, use_rslora=True)),
        ("gpt2", Lora()),
        ("gpt2", Lora(use_dora=True)),
    ],
    ids=str,
)  # fmt: skip
def test_merged_model_is_that_of_peft(bases: Any, tmp_path: Path, family: str, lora: Lora) -> None:
    """What is served must be what was trained, whatever the adapter changes; weights bit by bit."""
    base = bases(family)
    adapter = trained(base, lora, tmp_path / "adapter")
    ours = merged(base, adapter, tmp_path / "merged")
    assert sorted(file.name for file in (tmp_path / "merged").glob("*.safetensors*")) == sorted(
        file.name for file in base.glob("*.safetensors*")
    )
    adapted = load_adapter(load.load_base(base, dtype=torch.float32, on="cpu"), adapter)
    theirs = adapted.merge_and_unload()
    expected, found = theirs.state_dict(), ours.state_dict()
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert torch.equal(logits(ours), logits(theirs))
    assert not torch.equal(logits(ours), logits(load.load_base(base, dtype=torch.float32, on="cpu")))


# Rows and columns: less than one block, exactly one, some with a remainder, few rows that are long, few columns.
SHAPES = [(48, 64), (512, 512), (1041, 1000), (300, 2048), (127, 6000), (64, 8192), (4099, 100), (9000, 48)]


@pytest.mark.parametrize(
    ("kind", "rank", "dtype"),
    [
        ("lora", 1, torch.float32),
        ("lora", 16, torch.float32),
        ("lora", 64, torch.bfloat16),
        ("lora", 16, torch.float16),
        ("lora", 400, torch.float32),
        ("rslora", 6, torch.float32),
        ("dora", 16, torch.float32),
        ("transposed", 16, torch.bfloat16),
        ("transposed dora", 64, torch.float32),
    ],
    ids=str,
)
def test_weights_of_any_size_are_those_of_peft(tmp_path: Path, kind: str, rank: int, dtype: torch.dtype) -> None:
    """Large weights are merged in blocks of rows, and a product may round otherwise than that of the whole matrix."""
    torch.manual_seed(2)
    layers = [Conv1D(height, width) if "transposed" in kind else torch.nn.Linear(width, height, bias=False)
              for height, width in SHAPES]  # fmt: skip
    model = torch.nn.ModuleDict({f"layer{number}": layer for number, layer in enumerate(layers)}).to(dtype)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    save_file(model.state_dict(), tmp_path / "base" / "model.safetensors")
    config = LoraConfig(
        r=rank, lora_alpha=24, target_modules=list(model), use_rslora=kind == "rslora", use_dora="dora" in kind,
        fan_in_fan_out="transposed" in kind,
    )  # fmt: skip
    adapted: Any = get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    (tmp_path / "merged").mkdir()
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    found, expected = load_file(tmp_path / "merged" / "model.safetensors"), adapted.merge_and_unload().state_dict()
    assert [name for name, weight in expected.items() if not torch.equal(weight, found[name])] == []
    assert {value for _, value in differences(tmp_path / "merged", tmp_path / "base", tmp_path / "adapter")} == {0.0}


def test_adapter_of_a_tied_head_leaves_the_embedding(bases: Any, tmp_path: Path) -> None:
    """peft's own merge changes the embedding too, and the served model would not be the trained one."""
    base = bases("tied")
    adapter = trained(base, Lora(target_modules=["q_proj", "lm_head"]), tmp_path / "adapter")
    as_trained = load_adapter(load.load_base(base, dtype=torch.float32, on="cpu"), adapter)
    ours = merged(base, adapter, tmp_path / "merged")
    assert not ours.config.tie_word_embeddings
    assert torch.allclose(logits(ours), logits(as_trained), atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_merged_into_the_quantised_weights_it_is_the_model_that_was_trained(
    bases: Any, tmp_path: Path, bits: Any
) -> None:
    """Merged into the original weights it would be another model than the one that was trained and evaluated."""
    base, quantization = bases("llama"), Quantization(bits=bits)
    adapter = trained(base, Lora(), tmp_path / "adapter", quantization)
    quantised = load_adapter(load.load_base(base, dtype=torch.float32, on="cpu", quantization=quantization), adapter)
    ours = merged(base, adapter, tmp_path / "merged", quantised=Quantised(quantization, torch.float32))
    found = ours.state_dict()
    layers: list[tuple[str, Any]] = [
        (name, layer) for name, layer in quantised.named_modules() if isinstance(layer, LoraLayer)
    ]
    assert len(layers) == 14
    for name, layer in layers:
        weight = dequantize_module_weight(layer.get_base_layer()) + layer.get_delta_weight("default")
        assert torch.allclose(found[f"{name.removeprefix('base_model.model.')}.weight"], weight, atol=1e-6)
    other = merged(base, adapter, tmp_path / "original")
    as_trained = logits(quantised)
    # 8-bit layers also round what they multiply, which no weight can express.
    assert (logits(ours) - as_trained).norm() < (1e-3 if bits == 4 else 0.8) * (logits(other) - as_trained).norm()


def test_weights_have_the_number_format_that_is_asked_for(bases: Any, tmp_path: Path) -> None:
    """Half the bytes, and the configuration says so: readers load the weights in the format that it names."""
    base = bases("llama")
    adapter = trained(base, Lora(), tmp_path / "adapter")
    wide = merged(base, adapter, tmp_path / "wide")
    merged(base, adapter, tmp_path / "narrow", dtype=torch.bfloat16)
    narrow = AutoModelForCausalLM.from_pretrained(tmp_path / "narrow", local_files_only=True, dtype="auto")
    assert narrow.dtype == torch.bfloat16
    for name, value in wide.state_dict().items():
        assert torch.equal(value.to(torch.bfloat16), narrow.state_dict()[name])


def test_index_has_every_tensor_of_every_file(bases: Any, tmp_path: Path) -> None:
    """Loaders read only the tensors that the index names; an untied head is a tensor that the base has not."""
    base = bases("tied")
    adapter = trained(base, Lora(modules_to_save=["lm_head"]), tmp_path / "adapter")
    merged(base, adapter, tmp_path / "merged")
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())["weight_map"]
    files = {name: file.name for file in (tmp_path / "merged").glob("*.safetensors") for name in load_file(file)}
    assert files == index


def test_weights_are_read_from_the_files_that_transformers_loads(bases: Any, tmp_path: Path) -> None:
    """A folder that was saved to twice has the index of a model that nobody trained on."""
    base = tmp_path / "base"
    shutil.copytree(bases("llama"), base)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.norm.weight += 1
    model.save_pretrained(tmp_path / "single")
    shutil.copyfile(tmp_path / "single" / "model.safetensors", base / "model.safetensors")
    adapter = trained(base, Lora(), tmp_path / "adapter")
    ours = merged(base, adapter, tmp_path / "merged")
    assert torch.equal(ours.state_dict()["model.norm.weight"], model.state_dict()["model.norm.weight"])


def test_merging_nothing_changes_only_the_number_format(bases: Any, tmp_path: Path) -> None:
    """A model without an adapter must come out as it is, whatever its size."""
    base = bases("tied")
    ours = merged(base, None, tmp_path / "merged", dtype=torch.float16).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(base, local_files_only=True).state_dict()
    assert all(torch.equal(value, theirs[name].half()) for name, value in ours.items())


def test_wrong_tensor_is_found(bases: Any, tmp_path: Path) -> None:
    """Without its name nobody can tell a defect of merging from one of the disk."""
    base, folder = bases("llama"), tmp_path / "merged"
    adapter = trained(base, Lora(), tmp_path / "adapter")
    merged(base, adapter, folder)
    assert {value for _, value in differences(folder, base, adapter)} == {0.0}
    file = next(file for file in sorted(folder.glob("*.safetensors")) if "model.norm.weight" in load_file(file))
    tensors = load_file(file)
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"] * 1.5}, file, metadata={"format": "pt"})
    found = dict(differences(folder, base, adapter))
    assert {name: value for name, value in found.items() if value} == {"model.norm.weight": 0.5}
    lost = {name: value for name, value in tensors.items() if name != "model.norm.weight"}
    save_file(lost or {"x": torch.zeros(1)}, file, metadata={"format": "pt"})
    assert dict(differences(folder, base, adapter))["model.norm.weight"] == math.inf


def test_adapter_of_another_base_is_refused(bases: Any, tmp_path: Path) -> None:
    """Its changes would be dropped, and the package would be the base model."""
    adapter = trained(bases("gpt2"), Lora(), tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    with pytest.raises(JobError, match="no tensor of the base") as error:
        merge(bases("llama"), adapter, tmp_path / "merged")
    assert error.value.reason == "MERGE_UNSUPPORTED"


_LIMITED = """
import resource, sys
from pathlib import Path
from engine.model.merge import differences, merge
base, adapter, target = map(Path, sys.argv[1:])
target.mkdir()
words = Path("/proc/self/status").read_text().split()
taken = 1024 * int(words[words.index("VmData:") + 1])
resource.setrlimit(resource.RLIMIT_DATA, (taken + 90 * 2**20,) * 2)
merge(base, adapter, target)
assert {difference for _, difference in differences(target, base, adapter)} == {0.0}
"""


def test_memory_for_one_file_is_enough(tmp_path: Path) -> None:
    """Four files of 40 MiB under a limit of 90 MiB: an opened file counts as memory that a process may write to."""
    base = make(tmp_path / "base", "llama")
    adapter = trained(base, Lora(), tmp_path / "adapter")
    weights: dict[str, Any] = {}
    for file in sorted(base.glob("*.safetensors")):
        weights |= load_file(file)
        file.unlink()
    places = {}
    parts = [list(weights)[number::4] for number in range(4)]
    for number, names in enumerate(parts):
        name = f"model-{number + 1:05}-of-00004.safetensors"
        large = {f"large.{number}.{part}": torch.full((1 << 18,), float(part)) for part in range(40)}
        save_file({each: weights[each] for each in names} | large, base / name, {"format": "pt"})
        places |= dict.fromkeys([*names, *large], name)
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    command = [sys.executable, "-c", _LIMITED, base, adapter, tmp_path / "merged"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
