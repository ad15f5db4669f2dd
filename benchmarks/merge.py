"""Measures the merge of an adapter: its memory, its time against a copy of the same files, and its result against peft.

`python -m benchmarks.merge` makes a random Llama of four shards (2 GiB in float32 by default; --gib) and an adapter of
rank 16. Each figure is taken in a new process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.table import Row, show

_HIDDEN: Final = 1024
_LAYER_BYTES: Final = 4 * (4 * _HIDDEN**2 + 3 * _HIDDEN * 4 * _HIDDEN)
_SHARDS: Final = 4
_MEMORY, _TIME = 1.2, 1.5


def make_model(folder: Path, gib: float) -> None:
    """Writes a random model and an adapter that changes every linear layer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=_HIDDEN,
        intermediate_size=4 * _HIDDEN,
        num_hidden_layers=max(_SHARDS, round(gib * 2**30 / _LAYER_BYTES)),
        num_attention_heads=16,
        num_key_value_heads=16,
    )
    model = LlamaForCausalLM(config)
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    model.save_pretrained(folder / "base", max_shard_size=size // _SHARDS + _LAYER_BYTES // 4)
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.02)
    adapted.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)


def main() -> None:
    """Prints the figures, and exits with 1 if one misses its target."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gib", type=float, default=2.0, help="size of the model in float32")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds to take medians over")
    parser.add_argument("--only", choices=_PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(_PARTS[arguments.only](arguments.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder, arguments.gib)
        rows = _measure(folder, arguments.rounds)
    show(rows)
    if rows[0].value > _MEMORY or rows[1].value > _TIME or rows[2].value > 0:
        sys.exit("A figure misses its target.")


def _measure(folder: Path, rounds: int) -> list[Row]:
    shards = [file.stat().st_size for file in (folder / "base").glob("*.safetensors")]
    adapter = (folder / "adapter" / "adapter_model.safetensors").stat().st_size
    pairs = [(_part("merge", folder), _part("copy", folder)) for _ in range(rounds)]
    empty = _part("imports", folder)["peak_bytes"]
    allowed = max(shards) + adapter + empty
    peak = statistics.median(merged["peak_bytes"] for merged, _ in pairs)
    seconds, copied = (statistics.median(found["seconds"] for found in side) for side in zip(*pairs, strict=True))
    difference = _part("compare", folder)["difference"]
    of = f"{sum(shards) / 2**30:.2f} GiB in {len(shards)} shards"
    parts = f"{max(shards) / 2**20:.0f} + {adapter / 2**20:.0f} + {empty / 2**20:.0f} MiB"
    return [
        Row("merge: peak memory against largest shard + adapter + process", peak / allowed, "x", f"<= {_MEMORY} x",
            f"{peak / 2**20:.0f} MiB against {parts}; {of}"),
        Row("merge: time against copying the same files", seconds / copied, "x", f"<= {_TIME} x",
            f"{seconds:.2f} against {copied:.2f} s, median of {rounds}"),
        Row("merge: largest difference of logits from merge_and_unload in float32", difference, "", "0", of),
    ]  # fmt: skip


def _part(name: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.merge", "--only", name, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _peak() -> int:
    # That of getrusage contains the memory of the process that started this one.
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _merge(folder: Path) -> dict[str, float]:
    from engine.model.merge import merge

    target = _emptied(folder / "merged")
    began = time.monotonic()
    merge(folder / "base", folder / "adapter", target)
    return {"seconds": time.monotonic() - began, "peak_bytes": _peak()}


def _copy(folder: Path) -> dict[str, float]:
    target = _emptied(folder / "copied")
    began = time.monotonic()
    for file in sorted((folder / "base").iterdir()):
        # As merging does: through memory. copyfile could share the blocks of the file.
        with file.open("rb") as source, (target / file.name).open("wb") as sink:
            while chunk := source.read(1 << 20):
                sink.write(chunk)
    return {"seconds": time.monotonic() - began}


def _imports(folder: Path) -> dict[str, float]:
    import engine.model.merge  # noqa: F401 - its memory is measured

    return {"peak_bytes": _peak()}


def _compare(folder: Path) -> dict[str, float]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.arange(8, 72)[None]

    def logits(model: Any) -> Any:
        with torch.inference_mode():
            return model.eval()(input_ids=ids, use_cache=False).logits.float()

    theirs = logits(
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "adapter")
        .merge_and_unload()
    )  # fmt: skip
    ours = logits(AutoModelForCausalLM.from_pretrained(folder / "merged"))
    return {"difference": float((theirs - ours).abs().max())}


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


_PARTS: Final[dict[str, Callable[[Path], dict[str, float]]]] = {
    "merge": _merge,
    "copy": _copy,
    "imports": _imports,
    "compare": _compare,
}

if __name__ == "__main__":
    main()
