"""`ftf import-config`: every name in a file of another program is accounted for."""

import dataclasses
import json
import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest

from engine.config import job
from engine.config.spec_proto import spec_to_dict
from finetuneflow.cli.foreign import program
from finetuneflow.cli.import_config import _PROGRAMS, job_file, read_foreign
from finetuneflow.spec import draft_spec
from tests.cli.conftest import Ftf

AXOLOTL = """
base_model: org/small-llama
model_type: AutoModelForCausalLM
load_in_4bit: true
load_in_8bit: false
datasets:
  - path: rows.jsonl
    ds_type: json
    type: chat_template
    field_messages: turns
  - path: org/notes
    type: completion
    field: body
    split: train
val_set_size: 0.05
adapter: qlora
lora_r: 8
lora_alpha: 16
lora_target_linear: true
sequence_len: 1024
sample_packing: true
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 2
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 1e-4
train_on_inputs: false
bf16: auto
gradient_checkpointing: true
flash_attention: true
warmup_steps: 10
evals_per_epoch: 4
wandb_project: notes
special_tokens:
  pad_token: "<pad>"
hf_token: hf_abc
novel_setting: 3
deepspeed:
"""
LLAMA_FACTORY = """
model_name_or_path: org/small-llama
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_target: all
quantization_bit: 4
dataset: support,faq
template: chatml
cutoff_len: 512
max_samples: 1000
packing: true
output_dir: saves/support
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 2.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
pissa_init: true
flash_attn: fa2
val_size: 0.1
eval_strategy: steps
eval_steps: 50
report_to: none
"""
TRL = """
model_name_or_path: org/small-llama
dataset_name: org/chats
use_peft: true
load_in_4bit: true
lora_r: 32
lora_alpha: 64
lora_target_modules: [q_proj, v_proj]
max_length: 512
num_train_epochs: 1
per_device_train_batch_size: 2
gradient_checkpointing: true
assistant_only_loss: true
eval_strategy: "no"
logging_steps: 5
save_strategy: epoch
report_to: [wandb]
adam_beta2: 0.95
push_to_hub: false
"""

DEEPSPEED = """
{
  "train_batch_size": 16,
  "gradient_accumulation_steps": 4,
  "fp16": {
    "enabled": true
  },
  "zero_optimization": {
    "stage": 2,
    "offload_optimizer": {
      "device": "cpu"
    }
  }
}
"""


def imported(ftf: Ftf, path: Path, text: str, *arguments: object) -> dict[str, Any]:
    path.write_text(text)
    result = ftf("import-config", path, "--json", *arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def lost(found: dict[str, Any]) -> dict[str, str]:
    return {each["field"]: each["reason"] for each in found["without_counterpart"]}


def test_axolotl_file_is_a_job(ftf: Ftf, tmp_path: Path) -> None:
    found = imported(ftf, tmp_path / "config.yml", AXOLOTL)
    values = found["config"]
    assert (found["program"], values["base_model"], values["method"]) == ("axolotl", "org/small-llama", "qlora")
    assert values["training_data"] == [
        {"dataset": "rows.jsonl", "format": "chat", "mapping": {"messages": "turns"}},
        {"dataset": "hf://org/notes", "format": "text", "mapping": {"text": "body"}},
    ]
    assert values["holdout_fraction"] == 0.05
    assert values["lora"] == {"r": 8, "lora_alpha": 16, "target_modules": ["all-linear"], "lora_dropout": 0.0}
    assert values["quantization"] == {"bits": 4}
    assert values["hyperparameters"] == {
        "max_length": 1024,
        "packing": True,
        "group_by_length": False,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "num_epochs": 2,
        "optim": "adamw_8bit",
        "lr_scheduler_type": "cosine",
        "learning_rate": 1e-4,
        "loss_on": "response",
        "precision": "auto",
        "gradient_checkpointing": True,
        "attn_implementation": "flash_attention_2",
        "warmup_steps": 10,
        "weight_decay": 0.0,
        "early_stopping_patience": 0,
        "truncation": "drop",
    }
    reasons = lost(found)
    assert reasons.keys() == {"datasets[1].split", "evals_per_epoch", "wandb_project", "hf_token", "novel_setting"}
    assert "hf_abc" not in json.dumps(found)


def test_llama_factory_file_is_a_job(ftf: Ftf, tmp_path: Path) -> None:
    found = imported(ftf, tmp_path / "config.yaml", LLAMA_FACTORY)
    values, hyper = found["config"], found["config"]["hyperparameters"]
    assert (found["program"], values["method"], values["quantization"]) == ("llama-factory", "qlora", {"bits": 4})
    # The program's default of alpha is twice the rank.
    assert values["lora"] == {
        "r": 16, "lora_alpha": 32, "target_modules": ["all-linear"], "lora_dropout": 0.0,
        "init_lora_weights": "pissa_niter_16",
    }  # fmt: skip
    assert (hyper["max_length"], hyper["precision"], hyper["attn_implementation"]) == (512, "bf16", "flash_attention_2")
    assert (hyper["weight_decay"], hyper["optim"], hyper["early_stopping_patience"]) == (0.0, "adamw_torch", 0)
    assert (values["holdout_fraction"], hyper["eval_steps"], values["output_dir"]) == (0.1, 50, "saves/support")
    assert lost(found).keys() == {"dataset", "template", "max_samples", "packing"}


def test_trl_file_is_a_job(ftf: Ftf, tmp_path: Path) -> None:
    found = imported(ftf, tmp_path / "config.yaml", TRL)
    values, hyper = found["config"], found["config"]["hyperparameters"]
    assert (found["program"], values["method"], values["training_data"]) == ("trl", "qlora", ["hf://org/chats"])
    assert values["lora"] == {"r": 32, "lora_alpha": 64, "target_modules": ["q_proj", "v_proj"]}
    assert values["quantization"] == {"bits": 4, "bnb_4bit_use_double_quant": False}
    assert (hyper["loss_on"], hyper["max_length"], values["holdout_fraction"]) == ("response", 512, 0.0)
    assert (hyper["learning_rate"], hyper["lr_scheduler_type"]) == (2e-5, "linear")
    assert lost(found).keys() == {"dataset_name", "save_strategy", "report_to", "adam_beta2"}


def test_deepspeed_file_is_a_part_of_a_job(ftf: Ftf, tmp_path: Path) -> None:
    """Its rows of a step depend on the number of GPUs, which it does not name, and fp16 would be refused."""
    found = imported(ftf, tmp_path / "ds_config.json", DEEPSPEED)
    assert (found["program"], found["config"]["resources"]) == ("deepspeed", {"parallelism": "zero2_offload"})
    assert found["config"]["hyperparameters"] == {"gradient_accumulation_steps": 4, "max_grad_norm": 0.0}
    reasons = lost(found)
    assert reasons.keys() == {"train_batch_size", "fp16"}
    assert "product is 16" in reasons["train_batch_size"] and "bf16" in reasons["fp16"]
    assert found["differences"] == []


def test_every_name_of_a_deepspeed_file_is_accounted_for(ftf: Ftf, tmp_path: Path) -> None:
    """A section that has vanished may have been the reason why a training fitted or converged."""
    given = {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 8,
        "gradient_clipping": 0.5,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False, "loss_scale_window": 1000},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": 3e-5, "betas": [0.8, 0.999], "eps": 1e-8, "weight_decay": "auto"},
        },
        "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 10, "warmup_type": "linear"}},
        "zero_optimization": {"stage": 1, "overlap_comm": True, "reduce_bucket_size": 5e8, "novel": 1},
        "steps_per_print": 10,
        "aio": {"block_size": 1},
        "flops_profiler": {"enabled": False},
        "novel_section": {},
    }  # fmt: skip
    found = imported(ftf, tmp_path / "ds_config.json", json.dumps(given), "--from", "deepspeed")
    assert found["config"]["resources"] == {"gpus": 4, "parallelism": "zero2"}
    assert found["config"]["hyperparameters"] == {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 8,
        "max_grad_norm": 0.5,
        "precision": "bf16",
        "optim": "adamw_torch",
        "learning_rate": 3e-5,
        "lr_scheduler_type": "linear",
        "warmup_steps": 10,
    }
    assert lost(found).keys() == {
        "optimizer.params.betas", "optimizer.params.weight_decay", "zero_optimization.novel", "aio", "novel_section",
    }  # fmt: skip
    named = {path for each in found["translations"] for path in each["given"]} | lost(found).keys()
    assert {path.partition(".")[0] for path in named} == given.keys()
    (zero,) = (each for each in found["translations"] if "zero_optimization" in each["given"])
    assert "overlap_comm, reduce_bucket_size: chosen by the server" in zero["note"]


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, "zero_optimization"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}},
            "zero_optimization.offload_optimizer",
        ),
        ({"optimizer": {"type": "OneBitAdam"}}, "optimizer"),
        ({"scheduler": {"type": "WarmupLR", "params": {}}}, "scheduler"),
        (
            {"train_batch_size": 10, "train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 1},
            "train_batch_size",
        ),
        ({"gradient_clipping": "auto"}, "gradient_clipping"),
    ],
)  # fmt: skip
def test_what_deepspeed_does_otherwise_is_listed(ftf: Ftf, tmp_path: Path, given: dict[str, Any], field: str) -> None:
    found = imported(ftf, tmp_path / "ds_config.json", json.dumps(given), "--from", "deepspeed")
    assert lost(found)[field]


@pytest.mark.parametrize("text", [AXOLOTL, LLAMA_FACTORY, TRL])
def test_nothing_is_dropped_silently(ftf: Ftf, tmp_path: Path, text: str) -> None:
    """A setting that has vanished changes the model without anyone knowing."""
    found = imported(ftf, tmp_path / "config.yaml", text)
    named = {path for each in found["translations"] for path in each["given"]} | lost(found).keys()
    roots = {path.partition("[")[0].partition(".")[0] for path in named}
    given = {line.partition(":")[0] for line in text.splitlines() if line and line[0].isalpha()}
    assert given - roots == ({"deepspeed"} if "deepspeed" in given else set())


@pytest.mark.parametrize("text", [AXOLOTL, LLAMA_FACTORY, TRL])
def test_the_written_file_is_taken_as_a_job(
    ftf: Ftf, tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"turns": [{"role": "user", "content": "q"}]}\n')
    (tmp_path / "jobs").mkdir()
    source, out = tmp_path / "config.yaml", tmp_path / "jobs" / "job.toml"
    source.write_text(text)
    shown = ftf("import-config", source, "--out", out)
    assert shown.exit_code == 0, shown.output
    assert "Without counterpart:" in shown.stdout
    assert "#   " in out.read_text()
    assert tomllib.loads(out.read_text())["base_model"] == "org/small-llama"
    data = [] if "training_data" in tomllib.loads(out.read_text()) else [tmp_path / "rows.jsonl"]
    result = ftf("validate", *data, "--config", out, "--json")
    assert json.loads(result.stdout)["resolved_spec"]["base_model"] == "org/small-llama", result.output
    assert ftf("import-config", source).stdout.endswith(out.read_text().partition("\n\n")[2][-20:])


def test_an_existing_file_is_overwritten_only_on_request(ftf: Ftf, tmp_path: Path) -> None:
    """It may be a job file that was edited since."""
    source, out = tmp_path / "config.yaml", tmp_path / "job.toml"
    source.write_text(TRL)
    out.write_text("# edited")
    refused = ftf("import-config", source, "--out", out)
    assert refused.exit_code == 2 and "--force" in refused.stderr and out.read_text() == "# edited"
    assert ftf("import-config", source, "--out", out, "--force").exit_code == 0
    assert "base_model" in out.read_text()


@pytest.mark.parametrize(
    ("name", "text", "sets"),
    [
        ("axolotl", "adapter: lora\nload_in_8bit: true", {"method": "qlora", "quantization.bits": 8}),
        ("axolotl", "adapter:\nmicro_batch_size: 1", {"method": "full"}),
        ("axolotl", "adapter: lora\nlora_target_modules: '.*proj'", {"lora.target_modules_pattern": ".*proj"}),
        ("axolotl", "sdp_attention: true", {"hyperparameters.attn_implementation": "sdpa"}),
        ("axolotl", "train_on_inputs: true", {"hyperparameters.loss_on": "all"}),
        ("axolotl", "excess_length_strategy: truncate", {"hyperparameters.truncation": "keep_start"}),
        ("axolotl", "peft_use_dora: true\nadapter: lora", {"lora.use_dora": True}),
        ("llama-factory", "stage: pt", {"hyperparameters.loss_on": "all"}),
        ("llama-factory", "finetuning_type: full", {"method": "full"}),
        ("llama-factory", "lora_target: q_proj,v_proj", {"lora.target_modules": ["q_proj", "v_proj"]}),
        ("llama-factory", "flash_attn: disabled", {"hyperparameters.attn_implementation": "eager"}),
        ("llama-factory", "neat_packing: true", {"hyperparameters.packing": True}),
        ("trl", "warmup_steps: 0.1", {"hyperparameters.warmup_ratio": 0.1}),
        ("trl", "warmup_steps: 0\nwarmup_ratio: 0.1", {"hyperparameters.warmup_ratio": 0.1}),
        ("axolotl", "warmup_steps: 7\nwarmup_ratio: 0.1", {"hyperparameters.warmup_steps": 7}),
        ("trl", "use_peft: false", {"method": "full"}),
        ("trl", "max_steps: 5", {"hyperparameters.max_steps": 5}),
        ("trl", "train_sampling_strategy: group_by_length", {"hyperparameters.group_by_length": True}),
        ("trl", "dataset_name: data/rows.jsonl", {"training_data": [{"dataset": "data/rows.jsonl"}]}),
        ("trl", "use_peft: true\nlora_target_modules: q_proj v_proj", {"lora.target_modules": ["q_proj", "v_proj"]}),
        ("trl", "use_peft: true\nlora_target_modules: all-linear", {"lora.target_modules": ["all-linear"]}),
        ("axolotl", "bf16: full", {"hyperparameters.precision": "bf16"}),
        ("axolotl", "bf16: auto\nfp16: false", {"hyperparameters.precision": "auto"}),
    ],
)
def test_single_values(ftf: Ftf, tmp_path: Path, name: str, text: str, sets: dict[str, Any]) -> None:
    found = imported(ftf, tmp_path / "config.yaml", text, "--from", name)
    for path, value in sets.items():
        section, _, last = path.rpartition(".")
        assert (found["config"][section] if section else found["config"])[last] == value


def test_names_without_a_value_are_listed(ftf: Ftf, tmp_path: Path) -> None:
    """Somebody who has left a line empty by mistake sees that it does nothing."""
    found = imported(ftf, tmp_path / "config.yaml", "micro_batch_size: 2\nlora_r:\nnovel_setting:\nfp16: false\n")
    assert found["unset"] == ["lora_r", "novel_setting"]
    assert lost(found) == {}
    shown = ftf("import-config", tmp_path / "config.yaml").stdout
    assert "lora_r, novel_setting" in shown and "fp16 = false: the precision is chosen by the hardware" in shown


@pytest.mark.parametrize(
    ("name", "text", "field"),
    [
        ("axolotl", "bf16: full", "bf16"),
        ("axolotl", "batch_size: 32", "batch_size"),
        ("axolotl", "adapter: llama-adapter", "adapter"),
        ("axolotl", "adapter: qlora\nload_in_8bit: true", "adapter"),
        ("axolotl", "optimizer: muon", "optimizer"),
        ("axolotl", "val_set_size: 100", "val_set_size"),
        ("axolotl", "save_steps: 0.25", "save_steps"),
        ("axolotl", "chat_template: chatml", "chat_template"),
        ("trl", "max_length: null", "max_length"),
        ("llama-factory", "finetuning_type: freeze", "finetuning_type"),
        ("llama-factory", "packing: true", "packing"),
        ("llama-factory", "deepspeed: zero3.json", "deepspeed"),
        ("trl", "use_peft: true", "use_peft"),
        ("trl", "fsdp: full_shard", "fsdp"),
        ("trl", "lr_scheduler_type: reduce_lr_on_plateau", "lr_scheduler_type"),
    ],
)
def test_what_is_not_the_same_is_listed(ftf: Ftf, tmp_path: Path, name: str, text: str, field: str) -> None:
    found = imported(ftf, tmp_path / "config.yaml", text, "--from", name)
    assert lost(found)[field]


@pytest.mark.parametrize("name", ["axolotl", "llama-factory", "trl"])
def test_what_the_program_does_otherwise_is_listed(ftf: Ftf, tmp_path: Path, name: str) -> None:
    """A comparison of both programs would be one of different steps, and of different warm-ups."""
    file = tmp_path / "config.yaml"
    found = imported(ftf, file, "warmup_ratio: 0.1", "--from", name)
    (difference,) = found["differences"]
    assert "best checkpoint by eval_loss" in difference and "takes the last step" in difference
    (warmup,) = (each for each in found["translations"] if "warmup_ratio" in each["given"])
    assert warmup["note"].startswith("rounded down to whole steps")
    assert "Different here:" in ftf("import-config", file, "--from", name).stdout
    best = imported(ftf, file, "warmup_ratio: 0.1\nload_best_model_at_end: true", "--from", name)
    assert best["differences"] == []


@pytest.mark.parametrize(
    ("name", "text", "path"),
    [
        ("axolotl", "val_set_size: 250", "holdout_fraction"),
        ("axolotl", "optimizer: lion_8bit", "hyperparameters.optim"),
        ("axolotl", "adapter: llama-adapter", "method"),
        ("llama-factory", "finetuning_type: freeze", "method"),
        ("llama-factory", "val_size: 100", "holdout_fraction"),
        ("trl", "lr_scheduler_type: cosine_with_min_lr", "hyperparameters.lr_scheduler_type"),
        ("trl", "max_length: null", "hyperparameters.max_length"),
    ],
)
def test_default_does_not_replace_a_value_without_counterpart(
    ftf: Ftf, tmp_path: Path, name: str, text: str, path: str
) -> None:
    """The file does not leave it unset, and the report says that the recipe's default applies."""
    assert path not in imported(ftf, tmp_path / "config.yaml", text, "--from", name)["defaults"]


@pytest.mark.parametrize("name", ["axolotl", "llama-factory", "trl"])
def test_rows_are_neither_packed_nor_grouped_unless_the_file_says_so(ftf: Ftf, tmp_path: Path, name: str) -> None:
    hyper = imported(ftf, tmp_path / "config.yaml", "seed: 1", "--from", name)["config"]["hyperparameters"]
    assert hyper["packing"] is hyper["group_by_length"] is False


def test_text_is_packed_as_in_llama_factory(ftf: Ftf, tmp_path: Path) -> None:
    for text, packs in (("stage: pt", True), ("stage: pt\npacking: false", False), ("stage: sft", False)):
        found = imported(ftf, tmp_path / "config.yaml", text, "--from", "llama-factory")
        assert found["config"]["hyperparameters"]["packing"] is packs


@pytest.mark.parametrize(("name", "text"), [("axolotl", "rl: dpo"), ("llama-factory", "stage: dpo")])
def test_file_for_another_objective_is_refused(ftf: Ftf, tmp_path: Path, name: str, text: str) -> None:
    """Without that setting, it would be another training."""
    path = tmp_path / "config.yaml"
    path.write_text(text)
    result = ftf("import-config", path, "--from", name, "--out", tmp_path / "job.toml")
    assert result.exit_code == 2
    assert "only supervised fine-tuning" in result.stderr
    assert not (tmp_path / "job.toml").exists()


@pytest.mark.parametrize("line", ["loss_type: [sigmoid]", "beta: 0.1", "rpo_alpha: 1.0", "num_generations: 8"])
def test_trl_file_for_preferences_is_refused(ftf: Ftf, tmp_path: Path, line: str) -> None:
    """It has no name for its trainer, and would become supervised fine-tuning of all weights."""
    source = tmp_path / "dpo.yaml"
    source.write_text(f"model_name_or_path: org/small-llama\nlearning_rate: 5e-7\n{line}\n")
    result = ftf("import-config", source)
    assert result.exit_code == 2
    assert line.partition(":")[0] in result.stderr


def test_contradiction_is_refused(ftf: Ftf, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("max_seq_length: 64\nmax_length: 128\n")
    result = ftf("import-config", path, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stderr)["error"]["violations"][0]["field"] == "max_seq_length"


def test_defaults_of_trl_are_those_of_the_library() -> None:
    """A file without a value trains elsewhere with the library's default, and must do so here."""
    from trl import ModelConfig, SFTConfig

    theirs = {each.name: each.default for config in (SFTConfig, ModelConfig) for each in dataclasses.fields(config)}
    names = {"num_epochs": "num_train_epochs", "warmup_ratio": "warmup_steps"}
    names["bnb_4bit_use_double_quant"] = "use_bnb_nested_quant"
    for path, value in _PROGRAMS["trl"].defaults.items():
        name = path.rpartition(".")[2]
        if name not in ("method", "holdout_fraction", "early_stopping_patience", "loss_on", "group_by_length"):
            assert theirs[names.get(name, name)] == value, path
    assert theirs["train_sampling_strategy"] == "random"
    # What is not listed is the same here.
    ours = job.JobConfig(base_model="m")
    assert theirs["lora_r"] == ours.lora.r and theirs["lora_alpha"] == ours.lora.lora_alpha
    assert theirs["lora_dropout"] == ours.lora.lora_dropout and theirs["max_grad_norm"] == 1.0
    assert theirs["bnb_4bit_quant_type"] == ours.quantization.bnb_4bit_quant_type and theirs["seed"] == ours.seed
    assert theirs["truncation_mode"] == ours.hyperparameters.truncation and not theirs["packing"]


def test_values_that_an_import_accepts_are_those_of_the_engine() -> None:
    assert set(program.OPTIMIZERS.values()) == set(typing.get_args(job.Optimizer)) - {"auto"}
    assert set(program.SCHEDULERS) == set(typing.get_args(job.Scheduler))
    assert set(program.ATTENTION) == set(typing.get_args(job.AttentionImplementation))


@pytest.mark.parametrize("name", _PROGRAMS)
def test_defaults_of_every_program_are_valid(name: str) -> None:
    values: dict[str, Any] = {"base_model": "m", "training_data": "ds_1"}
    for path, value in _PROGRAMS[name].defaults.items():
        section, _, last = path.rpartition(".")
        (values.setdefault(section, {}) if section else values)[last] = value
    assert job.job_config(spec_to_dict(draft_spec(values).spec)).method == values.get("method", "auto")


ODD: list[Any] = [
    True, False, 0, -1, 1.5, 10**400, "", "x", "true", "1e-4", "a/b", [], [1], ["a"], [[]], [{}], {}, {"": {"seed": 1}},
    [{"path": 1}], [{"path": "a/b", "data_files": 5, "type": 5, "a.b[0]": 1, "split": "x"}], {"use_reentrant": True},
]  # fmt: skip


@pytest.mark.parametrize("name", _PROGRAMS)
def test_odd_values_are_accounted_for(name: str) -> None:
    """A file with a mistake in it ends in a report, not in a traceback."""
    for key in [*_PROGRAMS[name].rules, "unknown", "", "lora", "hyperparameters"]:
        for value in ODD:
            found = read_foreign({key: value}, _PROGRAMS[name], Path("config.yaml"))
            named = {path for each in found.translations for path in each.given} | found.lost.keys()
            assert any(path.startswith(key) for path in named), (key, value)
            tomllib.loads(job_file(found, "config.yaml"))


@pytest.mark.parametrize(
    ("text", "resources", "precision", "without"),
    [
        (
            "distributed_type: MULTI_GPU\nnum_processes: 4\nmixed_precision: bf16",
            {"gpus": 4, "parallelism": "ddp"},
            "bf16",
            [],
        ),
        (
            "distributed_type: MULTI_CPU\nnum_processes: 2\nmixed_precision: 'no'\nuse_cpu: true",
            {"gpus": 0, "world_size": 2, "parallelism": "ddp"},
            "fp32",
            [],
        ),
        (
            "distributed_type: FSDP\nnum_processes: 8\nmixed_precision: bf16\nfsdp_config:\n  fsdp_version: 2",
            {"gpus": 8, "parallelism": "fsdp"},
            "bf16",
            ["fsdp_config"],
        ),
        (
            "distributed_type: DEEPSPEED\nnum_processes: 2\nmixed_precision: bf16\nnum_machines: 2",
            {"gpus": 2},
            "bf16",
            ["num_machines", "num_processes"],
        ),
    ],
)
def test_devices_of_accelerate_are_translated(
    ftf: Ftf, tmp_path: Path, text: str, resources: dict[str, Any], precision: str, without: list[str]
) -> None:
    """The file was taken for one of TRL, whose defaults would then change the training."""
    common = "compute_environment: LOCAL_MACHINE\nmachine_rank: 0\nmain_training_function: main\n"
    found = imported(ftf, tmp_path / "default_config.yaml", common + text)
    assert found["config"] == {"resources": resources, "hyperparameters": {"precision": precision}}
    assert sorted(lost(found)) == sorted(without) and not found["defaults"]
