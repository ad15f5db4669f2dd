"""A caller gets all violations of a spec by field; valid specs pass unchanged."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from engine.config.job import JobConfig, job_config, unsupported
from engine.config.recipes import merge, recipes
from engine.config.spec_proto import config_to_spec, resolved_config, spec_to_dict, values_to_spec
from engine.config.trl_arguments import sft_arguments
from engine.errors import JobError
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec

MINIMAL: dict[str, Any] = {"base_model": "smollm2-135m", "training_data": [{"dataset": "ds_1"}]}


def refused(spec: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(JobError) as caught:
        job_config(spec)
    return {violation.field: violation.description for violation in caught.value.violations}


def test_the_defaults_are_those_of_the_default_recipe() -> None:
    """A default is the same in the code, in the recipe and in a resolved spec."""
    assert job_config(MINIMAL) == JobConfig(**MINIMAL, display_name="smollm2-135m on ds_1")
    hyper = job_config(MINIMAL).hyperparameters
    assert (hyper.num_epochs, hyper.learning_rate, hyper.gradient_accumulation_steps) == (3, 2e-4, None)


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_a_valid_job_and_round_trips_through_proto(name: str) -> None:
    """A resolved spec can be read back, and sent again as a spec, with the same meaning."""
    config = job_config({**MINIMAL, "recipe": name})
    message = FineTuningJobSpec.FromString(config_to_spec(config).SerializeToString())
    assert resolved_config(message) == config
    assert job_config(spec_to_dict(message)) == config
    assert spec_to_dict(values_to_spec(recipes()[name].values))
    assert len(recipes()[name].description) > 40


@pytest.mark.parametrize("template", ["", " \n"])
def test_an_empty_template_is_refused(template: str) -> None:
    """The caller meant it to contain something; otherwise the rows would silently be trained on as they are."""
    message = FineTuningJobSpec(base_model="m")
    message.training_data.add(dataset="ds_1", template=template)
    found = refused(spec_to_dict(message))
    assert list(found) == ["spec.training_data[0].template"]
    assert "an empty template" in found["spec.training_data[0].template"]


def test_explicit_zero_overrides_recipe_and_unset_field_does_not() -> None:
    """weight_decay = 0 must not silently become 0.01."""
    message = FineTuningJobSpec(base_model="m", recipe="cpu-demo")
    message.training_data.add(dataset="ds_1")
    message.hyperparameters.weight_decay = 0
    config = job_config(spec_to_dict(message))
    assert config.hyperparameters.weight_decay == 0
    assert config.hyperparameters.learning_rate == recipes()["cpu-demo"].values["hyperparameters"]["learning_rate"]


def test_every_field_of_the_proto_has_a_field_of_the_configuration() -> None:
    """The server must not ignore a field of the contract."""

    def compare(descriptor: Any, model: Any) -> None:
        assert set(descriptor.fields_by_name) == set(model.model_fields), descriptor.name
        for name, field in descriptor.fields_by_name.items():
            inner = [t for t in _leaves(model.model_fields[name].annotation) if hasattr(t, "model_fields")]
            if inner:
                compare(field.message_type, inner[0])

    compare(FineTuningJobSpec.DESCRIPTOR, JobConfig)


def _leaves(annotation: Any) -> list[Any]:
    return [annotation, *itertools.chain.from_iterable(map(_leaves, getattr(annotation, "__args__", ())))]


@pytest.mark.parametrize(
    ("change", "path", "said"),
    [
        (
            {"hyperparameters": {"learning_rate": -1.0}},
            "hyperparameters.learning_rate",
            "-1.0 given; must be a number above 0 and at most 1; default 0.0002",
        ),
        ({"hyperparameters": {"num_epochs": float("nan")}}, "hyperparameters.num_epochs", "nan given"),
        ({"hyperparameters": {"max_length": 7}}, "hyperparameters.max_length", "from 8 to 1,048,576; default 2048"),
        ({"hyperparameters": {"optim": "adam"}}, "hyperparameters.optim", "must be one of auto, adamw_torch"),
        ({"hyperparameters": {"packing": "yes"}}, "hyperparameters.packing", "true or false"),
        ({"hyperparameters": {"warmup_ratio": 0.1, "warmup_steps": 5}}, "hyperparameters.warmup_ratio", "set one"),
        ({"hyperparameters": {"max_seq_length": 512}}, "hyperparameters.max_seq_length", "Did you mean max_length?"),
        ({"learning_rate": 1e-4}, "learning_rate", "Did you mean spec.hyperparameters.learning_rate?"),
        ({"method": "qlra"}, "method", "Did you mean qlora?"),
        ({"recipe": "cpu-dem"}, "recipe", "Did you mean cpu-demo?"),
        ({"holdout_fraction": 0.6}, "holdout_fraction", "from 0 to 0.5; default 0.1"),
        ({"seed": 2**32}, "seed", "whole number from 0 to 4,294,967,295; default 42"),
        ({"lora": {"lora_dropout": 1.0}}, "lora.lora_dropout", "at least 0 and below 1"),
        ({"quantization": {"bits": 5}}, "quantization.bits", "one of 4, 8; default 4"),
        ({"labels": {"No": "x"}}, "labels.No", "matching"),
        ({"system_prompt": "x" * 17_000}, "system_prompt", "at most 16 KiB"),
        ({"training_data": []}, "training_data", "at least one"),
        ({"training_data": [{"dataset": "d"}, {"dataset": ""}]}, "training_data[1].dataset", "at least 1"),
        ({"training_data": [{"dataset": "d", "weight": 0.0}]}, "training_data[0].weight", "at most 100; default 1"),
        (
            {"training_data": [{"dataset": "d", "mapping": {"anser": "a"}}]},
            "training_data[0].mapping.anser",
            "Did you mean answer?",
        ),
        ({"evaluation": {"prompts": ["a", ""]}}, "evaluation.prompts[1]", "at least 1 character"),
        ({"resources": {"pool": "GPU"}}, "resources.pool", "[a-z][a-z0-9-]{0,30}"),
        ({"integrations": [{"mlflw": {}}]}, "integrations[0].mlflw", "Did you mean mlflow?"),
        ({"integrations": [{"wandb": {"project": "bot"}}]}, "integrations[0].wandb", "offline = true"),
        ({"integrations": [{"wandb": {"offline": True, "project": "a/b"}}]}, "integrations[0].wandb.project", "/"),
        ({"integrations": [{}]}, "integrations[0]", "one of webhook, tensorboard, mlflow"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named_with_its_path_range_and_default(change: dict[str, Any], path: str, said: str) -> None:
    """The message alone is enough to correct the spec."""
    violations = refused({**MINIMAL, **change})
    assert list(violations) == [f"spec.{path}"]
    assert said in violations[f"spec.{path}"]


def test_all_violations_are_returned_at_once() -> None:
    """Five mistakes take one round trip, not five: in sections, an unknown recipe, missing data."""
    assert refused(
        {"hyperparameters": {"learning_rate": 2, "max_steps": 0}, "seed": -1, "base_model": "m", "recipe": "defalt"}
    ).keys() == {
        "spec.hyperparameters.learning_rate", "spec.hyperparameters.max_steps", "spec.seed", "spec.recipe",
        "spec.training_data",
    }  # fmt: skip


def test_nul_characters_in_spec_are_refused() -> None:
    """Otherwise `ftf validate` without a server would accept a job that every server refuses."""
    source = {"dataset": "ds_1", "mapping": {"question": "a\0b"}}
    spec = {"system_prompt": "a\0b", "labels": {"x": "\0"}, "evaluation": {"prompts": ["good", "\0"]}}
    found = refused({**MINIMAL, **spec, "training_data": [source]})
    paths = ["system_prompt", "labels.x", "evaluation.prompts[1]", "training_data[0].mapping.question"]
    assert found == {f"spec.{path}": "holds a NUL character; remove it." for path in paths}


def test_an_enum_value_of_a_newer_client_is_refused() -> None:
    message = FineTuningJobSpec.FromString(FineTuningJobSpec(base_model="m").SerializeToString() + b"\x28\x63")
    message.training_data.add(dataset="ds_1")
    assert "99 given" in refused(spec_to_dict(message))["spec.method"]


def test_a_callers_value_drops_the_recipes_conflicting_value() -> None:
    """fitbox has 200 warm-up steps, which must not apply when a ratio is set."""
    spec = {**MINIMAL, "recipe": "fitbox"}
    assert job_config(spec).hyperparameters.warmup_steps == 200
    assert job_config({**spec, "hyperparameters": {"warmup_ratio": 0.1}}).hyperparameters.warmup_steps is None
    assert merge({"h": {"max_steps": 5}}, {"h": {"num_epochs": 2}}) == {"h": {"num_epochs": 2}}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"export": {"dtype": "bfloat16"}}, "spec.export.dtype"),
        ({"export": {"merge_base": "original"}}, "spec.export.merge_base"),
        ({"export": {"formats": ["merged"], "dtype": "int8"}}, "spec.export.dtype"),
        ({"export": {"gguf_types": ["q8_0"]}}, "spec.export.gguf_types"),
        ({"export": {"formats": ["gguf"], "dtype": "bfloat16"}}, "spec.export.dtype"),
        ({"export": {"formats": ["gguf"], "gguf_types": ["q9"]}}, "spec.export.gguf_types[0]"),
        ({"export": {"formats": ["gguf_adapter"], "gguf_types": ["f16", "q4_k_m"]}}, "spec.export.gguf_types"),
        ({"export": {"formats": ["gguf", "gguf_adapter"], "gguf_types": ["q4_k_m"]}}, "spec.export.gguf_types"),
        ({"export": {"formats": ["gguf_adapter"], "merge_base": "original"}}, "spec.export.merge_base"),
        (
            {
                "method": "qlora",
                "lora": {"init_lora_weights": "loftq"},
                "export": {"formats": ["merged"], "merge_base": "original"},
            },
            "spec.export.merge_base",
        ),
    ],
)
def test_settings_of_a_form_are_refused_without_it(spec: dict[str, Any], field: str) -> None:
    """A caller who sets the number format expects a file that has it."""
    with pytest.raises(JobError) as error:
        job_config({**MINIMAL, **spec})
    assert [violation.field for violation in error.value.violations] == [field]


def test_allowed_values_are_listed_without_the_empty_one() -> None:
    """`one of , float32` reads like a damaged message."""
    with pytest.raises(JobError) as error:
        job_config({**MINIMAL, "export": {"formats": ["merged"], "dtype": "int4"}})
    assert "one of float32, bfloat16, float16" in error.value.violations[0].description


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"method": "full"}, "method full trains none"),
        ({"lora": {"use_dora": True}}, "lora.use_dora: llama.cpp has no DoRA"),
        ({"lora": {"bias": "all"}}, "lora.bias: llama.cpp's adapters have no biases"),
        ({"lora": {"modules_to_save": ["lm_head"]}}, "no whole modules"),
        ({"lora": {"trainable_tokens": ["<x>"]}}, "no embeddings of tokens"),
        ({"method": "qlora", "lora": {"init_lora_weights": "loftq"}}, "LoftQ belongs to quantized weights"),
    ],
)
def test_adapter_that_no_gguf_file_can_express_is_refused_at_once(spec: dict[str, Any], words: str) -> None:
    """After the training the caller would have paid for an adapter that llama.cpp cannot load."""
    with pytest.raises(JobError) as error:
        job_config({**MINIMAL, **spec, "export": {"formats": ["gguf_adapter"]}})
    (violation,) = error.value.violations
    assert violation.field == "spec.export.formats" and words in violation.description


@pytest.mark.parametrize(
    "export", [{"formats": ["adapter", "merged", "adapter"]}, {"formats": ["gguf"], "gguf_types": ["f16", "f16"]}]
)
def test_form_or_type_that_is_named_twice_is_refused(export: dict[str, Any]) -> None:
    """The second may be a slip for another one, which the package would lack."""
    with pytest.raises(JobError) as error:
        job_config({**MINIMAL, "export": export})
    (violation,) = error.value.violations
    assert violation.description.endswith("twice; remove one of them.")


def test_inl_models_are_advised_to_export_what_they_can() -> None:
    """The advice for other models, gguf, would lead to the next refusal."""
    spec = {**MINIMAL, "base_model": "inl-small", "lora": {"use_dora": True}, "export": {"formats": ["gguf_adapter"]}}
    with pytest.raises(JobError) as error:
        job_config(spec)
    (violation,) = error.value.violations
    assert violation.description.endswith("Use merged or remove it.")


def test_types_of_adapters_are_those_that_the_converter_makes() -> None:
    """k-quants beside them are for the whole model, and one list of types says both."""
    both = {"formats": ["gguf", "gguf_adapter"], "gguf_types": ["q4_k_m", "f16", "q8_0"]}
    assert job_config({**MINIMAL, "export": both}).export.adapter_gguf_types == ["f16", "q8_0"]
    rslora = {**MINIMAL, "lora": {"use_rslora": True}, "export": {"formats": ["gguf_adapter"]}}
    assert job_config(rslora).export.adapter_gguf_types == ["f16"]
    assert job_config(MINIMAL).export.adapter_gguf_types == []


def test_merged_form_is_accepted_with_its_settings() -> None:
    """For other methods than qlora both base weights are the same, so a preset may name one for all."""
    for method in ("lora", "qlora", "full"):
        export = {"formats": ["merged", "adapter"], "dtype": "float16", "merge_base": "original"}
        if method == "qlora":
            export = {"formats": ["gguf"], "merge_base": "original", "gguf_types": ["f16", "q8_0"]}
        config = job_config({**MINIMAL, "method": method, "export": export})
        assert unsupported(config) == []
        assert resolved_config(config_to_spec(config)).export == config.export


@pytest.mark.parametrize(
    ("hub", "field"),
    [
        ({}, "repo_id"),
        ({"repo_id": "tuned"}, "repo_id"),
        ({"repo_id": "datasets/org/tuned"}, "repo_id"),
        ({"repo_id": "org/tuned."}, "repo_id"),
        ({"repo_id": "org/a--b"}, "repo_id"),
        ({"repo_id": "org/tuned", "revision": "refs/pr/1"}, "revision"),
        ({"repo_id": "org/tuned", "revision": "a..b"}, "revision"),
        ({"repo_id": "org/tuned", "commit_message": "two\nlines"}, "commit_message"),
        ({"repo_id": "org/tuned", "token": "hf_x"}, "token"),
    ],
)
def test_push_to_no_repository_of_models_is_refused(hub: dict[str, Any], field: str) -> None:
    """The hub would refuse it when the job has trained."""
    spec = {**MINIMAL, "secrets": {"hub_write_token": "writer"}}
    assert set(refused({**spec, "export": {"hub": hub}})) == {f"spec.export.hub.{field}"}
    config = job_config({**spec, "export": {"hub": {"repo_id": "org/tuned", "revision": "release/v1.0"}}})
    assert resolved_config(config_to_spec(config)).export == config.export
    assert set(refused({**MINIMAL, "export": {"hub": {"repo_id": "org/tuned"}}})) == {"spec.secrets.hub_write_token"}


def test_unavailable_features_are_refused_by_field() -> None:
    """No requested feature is silently ignored."""
    spec = {
        "base_model": "tiny",
        "training_data": [{"dataset": "a", "weight": 2.0}],
        "evaluation_data": [{"dataset": "b", "weight": 2.0}],
    }
    assert [each.field for each in unsupported(job_config(spec))] == ["spec.evaluation_data[0].weight"]
    assert unsupported(job_config(MINIMAL)) == []


@pytest.mark.parametrize(
    ("resources", "field"),
    [({"gpus": 2, "world_size": 3}, "world_size"), ({"gpus": 1, "parallelism": "zero2"}, "parallelism")],
)
def test_devices_and_processes_that_exclude_each_other_are_refused(resources: dict[str, Any], field: str) -> None:
    """Otherwise one of the two would be ignored."""
    assert set(refused({**MINIMAL, "resources": resources})) == {f"spec.resources.{field}"}


@pytest.mark.parametrize(
    "hyper", [{"optim": "adafactor"}, {"optim": "paged_adamw_8bit"}, {"precision": "fp16"}], ids=str
)
def test_what_deepspeed_would_compute_otherwise_is_refused(hyper: dict[str, Any]) -> None:
    """The job would train another model than on one device, and say nothing."""
    spec = {**MINIMAL, "resources": {"gpus": 2, "parallelism": "zero2"}, "hyperparameters": hyper}
    assert set(refused(spec)) == {f"spec.hyperparameters.{name}" for name in hyper}
    assert job_config({**spec, "resources": {"gpus": 2, "parallelism": "ddp"}})


def test_fsdp_divides_only_optimizers_that_treat_each_weight_alone() -> None:
    """bitsandbytes and adafactor compute with whole tensors, of which each process has rows."""
    spec = {**MINIMAL, "resources": {"gpus": 2, "parallelism": "fsdp"}}
    assert set(refused({**spec, "hyperparameters": {"optim": "adafactor"}})) == {"spec.hyperparameters.optim"}
    for hyper in ({"optim": "sgd"}, {"precision": "fp16"}, {}):
        assert unsupported(job_config({**spec, "hyperparameters": hyper})) == []


def test_a_secret_is_named_for_a_known_use_only() -> None:
    """A misspelled use would leave the job without its token, and fail it hours later."""
    assert job_config({**MINIMAL, "secrets": {"hub_token": "my-hub"}}).secrets == {"hub_token": "my-hub"}
    found = refused({**MINIMAL, "secrets": {"hub_tokn": "my-hub"}})
    assert "hub_token" in str(found) and all(path.startswith("spec.secrets") for path in found)
    assert set(refused({**MINIMAL, "secrets": {"hub_token": "No Name"}})) == {"spec.secrets.hub_token"}


def test_the_trainer_accepts_the_arguments(tmp_path: Path) -> None:
    """A renamed argument would fail every job with a TypeError."""
    from trl import SFTConfig

    automatic = {"precision": "fp32", "optim": "adamw_torch", "gradient_checkpointing": False}
    hyper = {**automatic, "group_by_length": True}
    config = job_config({**MINIMAL, "recipe": "finetuneflow", "method": "lora", "hyperparameters": hyper})
    arguments = SFTConfig(**sft_arguments(config, total_steps=100, output_dir=str(tmp_path), device="cpu"))
    assert (arguments.warmup_steps, arguments.max_length, arguments.bf16) == (3, 2048, False)
    with pytest.raises(ValueError, match="automatic"):
        sft_arguments(job_config(MINIMAL), total_steps=100, output_dir=str(tmp_path), device="cpu")


def test_a_resolved_curriculum_has_no_length_beside_its_phases() -> None:
    """An unused num_epochs would look like a setting, and max_steps would be refused when the spec is sent again."""
    phase = {"training_data": [{"dataset": "a"}], "num_epochs": 2.0}
    message = config_to_spec(job_config({"base_model": "m", "phases": [phase], "recipe": "cpu-demo"}))
    assert not message.hyperparameters.HasField("num_epochs") and not message.hyperparameters.HasField("max_steps")
    assert job_config(spec_to_dict(message)).phases[0].num_epochs == 2.0


def test_fields_that_conflict_with_phases_are_refused() -> None:
    """Otherwise one of two settings of the data or the length would silently be ignored."""
    phase = {"training_data": [{"dataset": "a", "mapping": {"text": "x"}, "template": "{}"}], "num_epochs": 1.0}
    spec = {**MINIMAL, "phases": [phase], "hyperparameters": {"max_steps": 5, "truncation": "middle"}}
    with pytest.raises(JobError) as caught:
        job_config(spec)
    assert {violation.field for violation in caught.value.violations} == {
        "spec.phases", "spec.hyperparameters.max_steps", "spec.phases[0].training_data[0].mapping",
        "spec.hyperparameters.truncation",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"lora": {"init_lora_weights": "pissa"}, "method": "qlora"}, "init_lora_weights"),
        ({"lora": {"init_lora_weights": "olora", "use_dora": True}}, "init_lora_weights"),
        ({"lora": {"init_lora_weights": "loftq"}, "method": "lora"}, "init_lora_weights"),
        ({"lora": {"init_lora_weights": "loftq"}, "quantization": {"bits": 8}}, "init_lora_weights"),
        ({"lora": {"init_lora_weights": "loftq"}, "quantization": {"bnb_4bit_quant_type": "fp4"}}, "init_lora_weights"),
        ({"lora": {"init_lora_weights": "pissa_niter_0"}}, "init_lora_weights"),
        ({"lora": {"use_dora": True}, "quantization": {"bits": 8}}, "use_dora"),
        ({"lora": {"target_modules_pattern": "a", "target_modules": ["q_proj"]}}, "target_modules_pattern"),
        ({"lora": {"target_modules_pattern": "a", "layers_to_transform": [1]}}, "target_modules_pattern"),
        ({"lora": {"target_modules_pattern": "(a"}}, "target_modules_pattern"),
        ({"lora": {"trainable_tokens": ["a"], "modules_to_save": ["embed_tokens"]}}, "trainable_tokens"),
    ],
)
def test_settings_of_adapters_that_exclude_each_other_are_refused(settings: dict[str, Any], field: str) -> None:
    """One of the two would be ignored, or the training would fail after the preflight."""
    with pytest.raises(JobError) as caught:
        job_config({**MINIMAL, **settings})
    assert [violation.field for violation in caught.value.violations] == [f"spec.lora.{field}"]


@pytest.mark.parametrize(
    ("evaluation", "field"),
    [
        ({"prompt_steps": 5}, "prompt_steps"),
        ({"prompts": ["a"], "prompt_steps": 5, "prompt_epochs": 1.0}, "prompt_epochs"),
    ],
)
def test_answers_in_training_need_prompts_and_one_interval(evaluation: dict[str, Any], field: str) -> None:
    """Nobody would be told that nothing is asked."""
    with pytest.raises(JobError) as caught:
        job_config({**MINIMAL, "evaluation": evaluation})
    assert [violation.field for violation in caught.value.violations] == [f"spec.evaluation.{field}"]


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({"harness_limit": 5}, "harness_tasks names no task"),
        ({"harness_tasks": ["sums", "sums"]}, "names one task twice"),
        ({"harness_tasks": ["sums"], "harness_limit": 0}, "1"),
        ({"harness_tasks": [f"task-{number}" for number in range(17)]}, "16"),
    ],
)
def test_settings_of_the_harness_that_mean_nothing_are_refused(evaluation: dict[str, Any], words: str) -> None:
    """A user with a limit but no task would wait for values that nobody measures."""
    with pytest.raises(JobError) as caught:
        job_config({**MINIMAL, "evaluation": evaluation})
    (found,) = caught.value.violations
    assert found.field.startswith("spec.evaluation") and words in found.description


def test_all_linear_equals_default_target_modules() -> None:
    config = job_config({**MINIMAL, "lora": {"target_modules": ["all-linear"]}})
    assert config.lora.target_modules == []
    assert job_config({**MINIMAL, "lora": {"target_modules": ["q_proj"]}}).lora.target_modules == ["q_proj"]


@pytest.mark.parametrize(
    ("former", "name"), [("qlora-3b", "experimentation-qa"), ("text-pretraining", "text-pretrain")]
)
def test_recipe_is_known_by_its_former_name(former: str, name: str) -> None:
    """Job files and stored specs of earlier versions would otherwise be refused."""
    old, new = (job_config({**MINIMAL, "recipe": each}) for each in (former, name))
    assert old.model_dump(exclude={"recipe"}) == new.model_dump(exclude={"recipe"})
    assert former not in recipes()
