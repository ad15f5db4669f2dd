"""Adapters that were made elsewhere, as a client packs them: what is taken from them, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from engine.config.job import Lora, job_config
from engine.errors import JobError
from engine.estimate.architecture import Architecture
from engine.plan.resolved import Resolved
from engine.plan.uploaded_adapter import take_uploaded_adapter
from finetuneflow import InvalidArgument
from finetuneflow.adapter_folder import pack
from tests.tiny_models import make_tiny_model

Tensors = dict[str, torch.Tensor]
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """An adapter as plain peft saves it."""
    config = LoraConfig(
        task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], lora_dropout=0.3
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def taken(tiny: Path, folder: Path, **given: Any) -> Resolved:
    packed = folder.with_name("packed.safetensors")
    pack(folder, packed)
    spec = {"base_model": "tiny", "training_data": [{"dataset": "ds_1"}], "start_from": "ds_2", "lora": given}
    resolved = Resolved(job_config(spec))
    take_uploaded_adapter(resolved, packed, given, Architecture.of_folder(tiny))
    return resolved


def with_config(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def with_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_job_takes_the_settings_of_the_adapter(tiny: Path, folder: Path, dtype: torch.dtype) -> None:
    with_tensors(folder, lambda tensors: tensors.update({name: value.to(dtype) for name, value in tensors.items()}))
    found = taken(tiny, folder, lora_dropout=0.2)
    lora = found.config.lora
    assert (lora.r, lora.lora_alpha, sorted(lora.target_modules)) == (3, 6.0, ["down_proj", "q_proj"])
    assert lora.lora_dropout == 0.2
    assert [(one.field, one.value) for one in found.resolutions] == [("lora", "r = 3, lora_alpha = 6")]


def test_adapter_of_all_linear_layers_is_taken_as_peft_saves_it(tiny: Path, tmp_path: Path) -> None:
    """peft and TRL save the path of every layer for it, and so do our packages."""
    config = LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, target_modules="all-linear")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config).save_pretrained(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert any(target.startswith("model.layers.0.") for target in saved), "peft saves names now"
    architecture = Architecture.of_folder(tiny)
    assert architecture.targets(taken(tiny, tmp_path / "adapter").config.lora) == [architecture.linears] * 2


def test_layer_of_one_block_can_be_named(tiny: Path) -> None:
    architecture = Architecture.of_folder(tiny)
    lora = Lora(target_modules=["layers.1.self_attn.q_proj", "down_proj"])
    names = [[layer.name for layer in layers] for layers in architecture.targets(lora)]
    assert names == [["mlp.down_proj"], ["self_attn.q_proj", "mlp.down_proj"]]


def test_packed_file_has_the_same_tensors(folder: Path, tmp_path: Path) -> None:
    pack(folder, tmp_path / "packed.safetensors")
    expected, found = load_file(folder / "adapter_model.safetensors"), load_file(tmp_path / "packed.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "only LORA"),
    ({"task_type": "SEQ_CLS"}, "only LORA"),
    ({"use_dora": True}, "use_dora = True"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
    ({"auto_mapping": {"parent_library": "os"}}, "auto_mapping"),
    ({"something_new": 7}, "something_new = 7"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
    ({"r": "8"}, "an invalid r"),
    ({"target_modules": None}, "has no target_modules"),
]


@pytest.mark.parametrize(("values", "words"), CONFIGS)
def test_setting_that_means_more_than_plain_lora_is_refused_by_name(
    tiny: Path, folder: Path, values: dict[str, Any], words: str
) -> None:
    """Ignored, it would make the training start from another model than the caller's."""
    with_config(folder, **values)
    with pytest.raises(JobError) as caught:
        taken(tiny, folder)
    assert caught.value.reason == "INVALID_ADAPTER" and words in caught.value.message, caught.value
    assert caught.value.violations[0].field == "spec.start_from"


TENSORS: list[tuple[Callable[[Tensors], object], str, str]] = [
    (lambda tensors: tensors.pop(FIRST), "ADAPTER_MISMATCH", "lacks base_model.model.model.layers.0"),
    (lambda tensors: tensors.update(other=torch.zeros(2)), "ADAPTER_MISMATCH", "unknown other"),
    (lambda tensors: tensors.update({FIRST: torch.zeros(3, 5)}), "ADAPTER_MISMATCH", "the shape (3, 5)"),
    (lambda tensors: tensors[FIRST][1, 2].fill_(float("nan")), "ADAPTER_NOT_FINITE", FIRST),
    (lambda tensors: tensors[FIRST][2, 0].fill_(float("-inf")), "ADAPTER_NOT_FINITE", FIRST),
    (lambda tensors: tensors.update({FIRST: tensors[FIRST].double()}), "INVALID_ADAPTER", "F64"),
]


@pytest.mark.parametrize(("change", "reason", "words"), TENSORS)
def test_weights_that_do_not_fit_are_refused_before_training(
    tiny: Path, folder: Path, change: Callable[[Tensors], object], reason: str, words: str
) -> None:
    with_tensors(folder, change)
    with pytest.raises(JobError) as caught:
        taken(tiny, folder)
    assert caught.value.reason == reason and words in caught.value.message, caught.value


def test_setting_of_the_job_that_is_not_the_adapters_is_refused(tiny: Path, folder: Path) -> None:
    with pytest.raises(JobError, match=r"spec\.lora\.r: 4 given, but the adapter ds_2 has 3"):
        taken(tiny, folder, r=4)


def test_safetensors_file_without_a_configuration_is_no_adapter(tiny: Path, folder: Path) -> None:
    spec = {"base_model": "tiny", "training_data": [{"dataset": "ds_1"}], "start_from": "ds_2"}
    with pytest.raises(JobError) as caught:
        file = folder / "adapter_model.safetensors"
        take_uploaded_adapter(Resolved(job_config(spec)), file, {}, Architecture.of_folder(tiny))
    assert caught.value.reason == "NOT_AN_ADAPTER"


def test_pickle_is_refused_before_it_is_uploaded(folder: Path, tmp_path: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidArgument, match="which can run code"):
        pack(folder, tmp_path / "packed.safetensors")
