"""Tests of the gguf_adapter form: beside a GGUF file of the base model it gives the trained model, and an adapter that
llama.cpp would compute otherwise is refused."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from engine.errors import JobError
from engine.model.materialise import materialise, packaged_gguf
from finetuneflow.v1.event_pb2 import ArtifactSaved
from finetuneflow.v1.stage_result_pb2 import ExportResult
from services.exporter.worker import gguf_adapter
from services.exporter.worker.__main__ import main
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.gguf_adapter import check_gguf_adapter
from services.exporter.worker.gguf_files import converter
from tests.services.exporter.conftest import random_adapter, resolved
from tests.services.exporter.test_gguf import STAND_IN
from tests.services.exporter.test_package import RecordingSink
from tests.tiny_models import make_tiny_llama

IDS = torch.arange(5, 45)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_adapter(base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def given(export_input: ExportInput, base: Path, adapter: Path) -> ExportInput:
    """An export of an adapter whose base model llama.cpp knows."""
    model = export_input.model.model_copy(update={"path": base})
    return export_input.model_copy(update={"model": model, "adapter_dir": adapter})


def export(given: ExportInput, tmp_path: Path, sink: RecordingSink | None = None, **changes: Any) -> ExportResult:
    config = resolved(**{"export": {"formats": ["gguf_adapter"]}, **changes})
    file = tmp_path / "input.json"
    file.write_text(given.model_copy(update={"config": config}).model_dump_json())
    return main(sink or RecordingSink(), file)


def field(file: Path, key: str) -> Any:
    found = GGUFReader(file).get_field(key)
    assert found is not None, key
    return found.contents()


def tensors(file: Path) -> dict[str, torch.Tensor]:
    return {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in GGUFReader(file).tensors}


def as_llama_cpp(base: Path, file: Path) -> torch.Tensor:
    """Returns the logits of the base model with the adapter of a file of type f32, as llama.cpp computes them: alpha by
    the rank, and for query and key the rows of each head as pairs that are half a head apart."""
    model = AutoModelForCausalLM.from_pretrained(base)
    alpha, own = field(file, "adapter.lora.alpha"), tensors(file)
    paths = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    for layer in range(2):
        for name, path in paths.items():
            a, b = (own.pop(f"blk.{layer}.{name}.weight.lora_{part}") for part in "ab")
            delta = b @ a * (alpha / a.shape[0])
            if name in ("attn_q", "attn_k"):
                heads = 4 if name == "attn_q" else 2
                delta = delta.view(heads, -1, 2, delta.shape[1]).transpose(1, 2).reshape(delta.shape)
            model.get_submodule(f"model.layers.{layer}.{path}").weight.data += delta
    assert not own
    return logits(model)


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def trained(base: Path, adapter: Path) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter))


@pytest.mark.long
def test_file_beside_the_base_model_is_the_trained_model(
    given: ExportInput, base: Path, adapter: Path, tmp_path: Path
) -> None:
    """Who serves ten tuned models of one base loads that once, and needs no merged copies of it."""
    sink = RecordingSink()
    types = {"formats": ["gguf_adapter"], "gguf_types": ["f32", "q8_0"]}
    result = export(given, tmp_path, sink, export=types)
    files = ["gguf_adapter/docs-helper-lora-f32.gguf", "gguf_adapter/docs-helper-lora-q8_0.gguf"]
    assert {*files, "gguf_adapter/Modelfile"} <= {event.path for event in sink.said if isinstance(event, ArtifactSaved)}
    f32, q8_0 = result.forms
    assert [f32.gguf.file, q8_0.gguf.file] == files and f32.format == 4
    assert dict(f32.gguf.tensor_types) == {"F32": 28}
    assert dict(q8_0.gguf.tensor_types) == {"F16": 14, "Q8_0": 14}, "rows of the rank are too short for Q8_0"
    assert f32.comparison.mean_kl < 1e-8 and f32.comparison.max_mean_kl == pytest.approx(1e-3)
    assert f32.comparison.mean_kl < q8_0.comparison.mean_kl < q8_0.comparison.max_mean_kl == pytest.approx(0.02)

    file, saved = given.out_dir / files[0], load_file(adapter / "adapter_model.safetensors")
    layer = "base_model.model.model.layers.1.mlp.down_proj"
    assert torch.equal(tensors(file)["blk.1.ffn_down.weight.lora_b"], saved[f"{layer}.lora_B.weight"])
    assert torch.allclose(as_llama_cpp(base, file), trained(base, adapter), atol=1e-4)
    assert field(file, "general.architecture") == "llama" and field(file, "general.type") == "adapter"
    assert field(file, "general.name") == "Docs | helper"
    assert str(base) not in str(file.read_bytes()), "a path of this machine means nothing elsewhere"
    lines = (given.out_dir / "gguf_adapter" / "Modelfile").read_text()
    assert "FROM ./BASE.gguf\nADAPTER ./docs-helper-lora-f32.gguf\n# ADAPTER ./docs-helper-lora-q8_0" in lines
    assert "TEMPLATE" in lines
    served = {each.reader: each.command for each in result.servable_by}
    assert served["llama.cpp"].startswith(f"llama-server -m BASE.gguf --lora {files[0]}  # BASE.gguf: ftf export ")
    card, report = (given.out_dir / "README.md").read_text(), (given.out_dir / "report.md").read_text()
    assert "library_name: llama.cpp" in card
    assert served["llama.cpp"] in card and served["llama.cpp"] in report
    assert f"- GGUF adapter: `{files[1]}`" in report and "beside a GGUF file of the base model" in card


@pytest.mark.long
def test_rslora_adapter_has_the_scale_of_its_training(given: ExportInput, base: Path, tmp_path: Path) -> None:
    """llama.cpp divides alpha by the rank, where rsLoRA divides it by the root of the rank; the converter does not see
    it, and the model would answer as if it had been trained half as much."""
    adapter = random_adapter(base, tmp_path / "adapter", use_rslora=True)
    types = {"formats": ["adapter", "gguf_adapter"], "gguf_types": ["f32"]}
    lora = {"r": 4, "lora_alpha": 8.0, "use_rslora": True}
    _, form = export(given.model_copy(update={"adapter_dir": adapter}), tmp_path, export=types, lora=lora).forms
    file = given.out_dir / form.gguf.file
    assert field(file, "adapter.lora.alpha") == 16, "8 by the root of 4 is 16 by 4"
    assert torch.allclose(as_llama_cpp(base, file), trained(base, adapter), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("blk.1.ffn_down.weight.lora_a", r"blk\.1\.ffn_down\.weight\.lora_a differs from the checkpoint's "),
        pytest.param(
            "blk.0.attn_q.weight.lora_b",
            r"blk\.0\.attn_q\.weight\.lora_b differs from the checkpoint's ",
            marks=pytest.mark.long,
        ),
        pytest.param("adapter.lora.alpha", r"its alpha 1 scales it by 0\.25 instead of 2", marks=pytest.mark.long),
    ],
)
def test_file_that_is_another_adapter_is_not_published(
    given: ExportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, problem: str
) -> None:
    """It loads without an error, and gives answers that look almost right."""
    stand_in = tmp_path / "convert.py"
    stand_in.write_text(STAND_IN.format(script=str(converter("convert_lora_to_gguf.py")), name=name))
    monkeypatch.setattr(gguf_adapter, "converter", lambda script: stand_in)
    sink = RecordingSink()
    with pytest.raises(JobError, match=problem) as error:
        export(given, tmp_path, sink)
    assert error.value.reason == "EXPORT_DIFFERS"
    assert not [event for event in sink.said if isinstance(event, ArtifactSaved)]
    assert list(given.out_dir.iterdir()) == []


@pytest.mark.long
def test_rows_in_another_order_are_not_published(
    given: ExportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp has the rows of query and key in an order of its own; an adapter without it changes the wrong rows."""
    stand_in = tmp_path / "convert.py"
    swapped = STAND_IN.replace("tensor.data[3] = -tensor.data[3]", "tensor.data[[0, 1]] = tensor.data[[1, 0]]")
    script = str(converter("convert_lora_to_gguf.py"))
    stand_in.write_text(swapped.format(script=script, name="blk.0.attn_k.weight.lora_b"))
    monkeypatch.setattr(gguf_adapter, "converter", lambda script: stand_in)
    with pytest.raises(JobError, match=r"blk\.0\.attn_k\.weight\.lora_b differs") as error:
        export(given, tmp_path)
    assert error.value.reason == "EXPORT_DIFFERS"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"use_dora": True}, "no DoRA"),
        ({"bias": "lora_only"}, "no biases"),
        ({"modules_to_save": ["lm_head"]}, "no whole modules"),
        ({"trainable_token_indices": [7]}, "no embeddings of tokens"),
        ({"rank_pattern": {"q_proj": 8}}, "different ranks"),
        ({"alpha_pattern": {"q_proj": 8}}, "different scales"),
        ({"fan_in_fan_out": True}, "transposed layers"),
    ],
)
def test_adapter_that_llama_cpp_would_compute_otherwise_is_refused(
    given: ExportInput, tmp_path: Path, settings: dict[str, Any], problem: str
) -> None:
    """Such a file cannot say what was trained; parts of the training would be lost."""
    adapter = tmp_path / "adapter"
    shutil.copytree(given.adapter_dir, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    with pytest.raises(JobError, match=problem) as error:
        check_gguf_adapter(given.model_copy(update={"adapter_dir": adapter}))
    assert error.value.reason == "GGUF_UNSUPPORTED" and "Export it as gguf" in error.value.advice


def test_adapter_with_tensors_of_another_kind_is_refused(given: ExportInput, base: Path, tmp_path: Path) -> None:
    """A matrix of the embedding has no place that llama.cpp's users could be told of."""
    adapter = tmp_path / "adapter"
    config = LoraConfig(r=4, target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(
        adapter, save_embedding_layers=False
    )
    with pytest.raises(JobError, match=r"no place for its tensor .*embed_tokens\.lora_embedding_A") as error:
        check_gguf_adapter(given.model_copy(update={"adapter_dir": adapter}))
    assert error.value.reason == "GGUF_UNSUPPORTED"


@pytest.mark.long
def test_file_that_does_not_fit_into_memory_is_compared_by_tensors(
    given: ExportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that nobody has run must not look like one that was."""
    memory = SimpleNamespace(total=2**40, available=1000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    (form,) = export(given, tmp_path).forms
    assert form.not_run == "the model does not fit into free memory" and not form.HasField("comparison")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_adapter_of_the_built_in_model_is_the_same_in_f16_and_close_in_q8_0(
    export_input: ExportInput, tmp_path: Path
) -> None:
    """Real weights, a head that is tied, and matrices of rank 32, which are Q8_0 on both sides."""
    base = tmp_path / "smollm2"
    materialise(packaged_gguf(), base)
    adapter = random_adapter(base, tmp_path / "adapter", r=32)
    model = export_input.model.model_copy(update={"path": base})
    given = export_input.model_copy(update={"model": model, "adapter_dir": adapter})
    f16, q8_0 = export(given, tmp_path, export={"formats": ["gguf_adapter"], "gguf_types": ["f16", "q8_0"]}).forms
    assert f16.comparison.mean_kl < f16.comparison.max_mean_kl
    assert q8_0.comparison.mean_kl < q8_0.comparison.max_mean_kl
    assert dict(q8_0.gguf.tensor_types) == {"Q8_0": 420}


@pytest.mark.long
def test_adapter_of_qlora_is_compared_on_the_weights_that_it_is_served_with(
    export_input: ExportInput, given: ExportInput, tmp_path: Path
) -> None:
    """It was trained on quantized weights, which no GGUF file of the base model has: what that costs is measured."""
    types = {"formats": ["gguf_adapter", "merged"], "gguf_types": ["f32"]}
    found = export(given, tmp_path, export=types, method="qlora").forms
    merged, alone = found
    assert (merged.merge_base, alone.merge_base) == ("trained", "original")
    assert alone.comparison.mean_kl > merged.comparison.mean_kl
    assert not alone.comparison.HasField("max_mean_kl")
    assert "The training quantized that model" in (given.out_dir / "report.md").read_text()
