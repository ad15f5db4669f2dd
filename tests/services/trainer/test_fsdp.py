"""Trainings by several processes that divide the weights (PyTorch FSDP2), on the CPU."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed, multiprocessing
from torch.testing import assert_close

from engine.config.job import Lora
from engine.data.prepare import Prepared
from engine.errors import JobError
from engine.inl.configuration import InlConfig
from engine.inl.model import InlForCausalLM
from engine.model.adapter import attach_lora, load_adapter
from engine.model.generate import generate
from engine.model.load import load_base
from finetuneflow.v1.event_pb2 import Eval, Log
from finetuneflow.v1.stage_result_pb2 import InferenceSample
from services.trainer.worker.checkpoint import IncompleteCheckpoint
from services.trainer.worker.fsdp import FsdpTrainer, check_sharded, follow, leading, loaded_in_turn, shard
from services.trainer.worker.methods import load_trained_weights
from services.trainer.worker.ranks import Ranks, share_of
from services.trainer.worker.recipe import train
from tests.services.trainer.parts import Recorder
from tests.services.trainer.test_ranks import (
    COMMON,
    MakeInput,
    assert_goes_on_exactly,
    assert_pauses,
    figures,
    run_ranks,
)
from tests.services.trainer.test_zero import held_out_loss
from tests.tiny_models import make_tiny_tokenizer

FSDP: dict[str, Any] = {"resources": {"world_size": 2, "parallelism": "fsdp"}}
PLAIN: dict[str, Any] = {"lora_dropout": 0.0}
CASES: list[dict[str, Any]] = [
    {},
    {"method": "full", "gradient_accumulation_steps": 2},
    {"method": "full", "gradient_checkpointing": True, "label_smoothing_factor": 0.1},
    {"method": "full", "precision": "bf16", "max_grad_norm": 0.0},
    {"method": "full", "optim": "adamw_torch_fused", "group_by_length": True},
    {"precision": "bf16", "optim": "sgd", "gradient_checkpointing": True},
    {"packing": True, "per_device_train_batch_size": 1},
    {"lora": PLAIN | {"init_lora_weights": "pissa"}},
    {"lora": PLAIN | {"use_dora": True}, "label_smoothing_factor": 0.1},
    {"lora": PLAIN | {"modules_to_save": ["lm_head"], "trainable_tokens": ["<|im_end|>"]}},
]
_IDS = torch.tensor([[5, 9, 11, 200, 7, 42, 13]])


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case) or "lora")
def test_divided_weights_train_like_one_process(make_input: MakeInput, tmp_path: Path, case: dict[str, Any]) -> None:
    """Dividing the weights must save memory, and change nothing that is learned or reported."""
    case = COMMON | case
    accumulation = case.get("gradient_accumulation_steps", 1)
    alone, single = Recorder(), make_input("alone", **case | {"gradient_accumulation_steps": 2 * accumulation})
    expected = train(single, alone)

    together = run_ranks(make_input("together", **case, **FSDP), tmp_path)

    assert [failed.message for failed in together.of("stage_failed")] == []
    assert together.status == 0, together.lines
    (completed,) = together.of("stage_completed")
    found = figures(together.of("log"), together.of("eval"))
    tolerance = 1e-2 if case.get("precision") == "bf16" else 1e-4
    for mine, other in zip(found, figures(alone.of(Log), alone.of(Eval)), strict=True):
        assert mine == pytest.approx(other, rel=tolerance)
    norms = [[log.grad_norm for log in logs] for logs in (together.of("log"), alone.of(Log))]
    assert norms[0] == pytest.approx(norms[1], rel=10 * tolerance)
    assert completed.training.best_step == expected.best_step
    assert completed.training.num_trainable_parameters == expected.num_trainable_parameters
    files = ["model.safetensors", "config.json"]
    if case.get("method") != "full":
        files = ["adapter_model.safetensors", "adapter_config.json"]
    folders = [out / "checkpoints/step-8" for out in (together.out_dir, single.out_dir)]
    weights = [load_file(folder / files[0]) for folder in folders]
    assert_close(weights[0], weights[1], rtol=10 * tolerance, atol=tolerance)
    assert (folders[0] / files[1]).read_text() == (folders[1] / files[1]).read_text()


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("method", "rank"), [("lora", 1), ("full", 0)])
def test_a_killed_process_ends_the_training_and_the_next_one_goes_on_exactly(
    make_input: MakeInput, tmp_path: Path, method: str, rank: int
) -> None:
    """Each process has a share of weights and states that no other one has."""
    case = COMMON | FSDP | {"method": method, "lora": {"lora_dropout": 0.1}, "save_steps": 2}
    weights = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    states = ["optimizer_0.pt", "optimizer_1.pt", "rng_state_0.pth", "rng_state_1.pth"]
    assert_goes_on_exactly(make_input, tmp_path, case, rank, 5, [weights, "scheduler.pt", *states])


@pytest.mark.long
def test_a_pause_is_agreed_on(make_input: MakeInput, tmp_path: Path) -> None:
    """If only one process stopped, the others would wait for its share of the weights."""
    assert_pauses(make_input, tmp_path, COMMON | FSDP)


@pytest.mark.long
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_checkpoint_loads_without_other_processes(
    make_input: MakeInput, tmp_path: Path, tiny_model: Path, data_dir: Path, method: str
) -> None:
    """Evaluations and exports read the same files as after any other training, with transformers and peft alone."""
    ended = run_ranks(make_input("ended", method=method, **COMMON | FSDP), tmp_path)

    checkpoint = ended.checkpoints[8]
    weights = load_file(checkpoint / ("adapter_model.safetensors" if method == "lora" else "model.safetensors"))
    trained = sum(each.numel() for each in weights.values())
    # Two averages of each weight, half of them in each file.
    for rank in (0, 1):
        states = torch.load(checkpoint / f"optimizer_{rank}.pt", weights_only=True)["state"]
        averages = [each[name] for each in states.values() for name in ("exp_avg", "exp_avg_sq")]
        assert sum(each.numel() for each in averages) == pytest.approx(trained, rel=0.05)
    assert [path.name for path in checkpoint.iterdir() if path.is_dir()] == []
    model = load_base(tiny_model if method == "lora" else checkpoint, dtype=torch.float32, on="cpu")
    model = load_adapter(model, checkpoint) if method == "lora" else model
    assert held_out_loss(model, data_dir) == pytest.approx(ended.of("eval")[-1].eval_loss, rel=1e-4)


@pytest.mark.long
def test_prompts_are_answered_during_the_training(make_input: MakeInput, data_dir: Path, tmp_path: Path) -> None:
    """One process answers, with weights that the others have."""
    data = tmp_path / "prepared"
    shutil.copytree(data_dir, data)
    (data / "prepared.json").write_text(json.dumps(asdict(Prepared("", []))))

    def asking(out: str, **case: Any) -> Any:
        made = make_input(out, **COMMON | case, more={"data_dir": str(data)})
        # The answers have different lengths, and a second batch.
        settings = {"prompts": ["What?", "The answer"], "prompt_steps": 3, "max_new_tokens": 6}
        evaluation = made.config.evaluation.model_copy(update=settings)
        return made.model_copy(update={"config": made.config.model_copy(update={"evaluation": evaluation})})

    alone = Recorder()
    train(asking("alone", gradient_accumulation_steps=2), alone)
    together = run_ranks(asking("together", **FSDP), tmp_path)

    assert [failed.message for failed in together.of("stage_failed")] == []
    samples = [(each.step, each.instruction, each.model_output) for each in together.of("sample")]
    assert samples == [(each.step, each.instruction, each.model_output) for each in alone.of(InferenceSample)]
    assert [step for step, *_ in samples] == [3, 3, 6, 6, 8, 8]
    assert together.of("log")[-1].loss == pytest.approx(alone.of(Log)[-1].loss, rel=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("case", [{"method": "full", "gradient_checkpointing": True}, {"packing": True}], ids="-".join)
def test_inl_models_train_like_in_one_process(make_input: MakeInput, tmp_path: Path, case: dict[str, Any]) -> None:
    """Their blocks have weights of their own, beside those of their layers."""
    folder = make_tiny_tokenizer(tmp_path / "inl")
    torch.manual_seed(0)
    config = InlConfig(vocab_size=384, hidden_size=32, num_hidden_layers=2, dropout=0.0)
    InlForCausalLM(config).save_pretrained(folder)
    model = {"path": str(folder), "id": "inl", "revision": "r1", "weights_sha256": "0" * 64}
    case = COMMON | case | {"more": {"model": model}}
    alone = Recorder()
    train(make_input("alone", **case, gradient_accumulation_steps=2), alone)

    together = run_ranks(make_input("together", **case, **FSDP), tmp_path)

    assert [failed.message for failed in together.of("stage_failed")] == []
    found = figures(together.of("log"), together.of("eval"))
    for mine, other in zip(found, figures(alone.of(Log), alone.of(Eval)), strict=True):
        assert mine == pytest.approx(other, rel=1e-4)


def test_a_model_that_is_not_divided_is_noticed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would train as many models as there are processes, or need memory that nobody has."""
    model = load_base(tiny_model, dtype=torch.float32, on="cpu")
    with pytest.raises(RuntimeError, match="LlamaForCausalLM, whose weights FSDP has not divided"):
        check_sharded(model, 2)
    trainer = FsdpTrainer.__new__(FsdpTrainer)
    trainer._ranks = Ranks(0, 2)
    with pytest.raises(RuntimeError, match="shares no gradients"):
        trainer.training_step(model)
    with pytest.raises(JobError, match="no blocks"):
        shard(torch.nn.Linear(2, 2), None)  # type: ignore[arg-type] - it is not used before


def test_a_checkpoint_without_a_weight_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    """The rest would begin anew, and the curve would show nothing of it."""
    model = load_base(tiny_model, dtype=torch.float32, on="cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(IncompleteCheckpoint, match=r"has no weights model\.embed_tokens\.weight"):
        load_trained_weights(model, tmp_path / "empty")


@pytest.mark.long
def test_each_process_holds_its_half(tiny_model: Path, tmp_path: Path) -> None:
    """This is what a model that does not fit is divided for."""
    multiprocessing.spawn(_hold, (tiny_model, tmp_path / "meeting"), nprocs=2)


@pytest.mark.long
def test_processes_that_computed_other_initial_weights_are_noticed(tiny_model: Path, tmp_path: Path) -> None:
    """Each keeps its rows of what it has computed; rows of different matrices are no model."""
    multiprocessing.spawn(_differ, (tiny_model, tmp_path / "meeting"), nprocs=2)


def _differ(rank: int, tiny_model: Path, meeting: Path) -> None:
    """Runs as one of two processes."""
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    ranks = Ranks(rank, 2, distributed.new_group(backend="gloo"))
    torch.manual_seed(rank)
    with pytest.raises(RuntimeError, match="different initial weights"):
        loaded_in_turn(lambda: _adapted(tiny_model), "cpu", ranks)
    distributed.destroy_process_group()


def _hold(rank: int, tiny_model: Path, meeting: Path) -> None:
    """Runs as one of two processes."""
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    ranks = Ranks(rank, 2, distributed.new_group(backend="gloo"))
    torch.manual_seed(0)
    plain = _adapted(tiny_model)
    torch.manual_seed(0)
    divided = loaded_in_turn(lambda: _adapted(tiny_model), "cpu", ranks)

    whole = sum(each.numel() * each.element_size() for each in plain.parameters())
    mine = sum(share_of(each).numel() * each.element_size() for each in divided.parameters())
    assert 0.49 * whole < mine < 0.51 * whole
    trained = dict(plain.named_parameters())
    # The same rows on both, so that the mean of their gradients is that of one.
    for model in (plain, divided):
        model.train()
        model(input_ids=_IDS, labels=_IDS).loss.backward()
    for name, parameter in divided.named_parameters():
        assert_close(parameter.full_tensor(), trained[name])
        if parameter.requires_grad:
            assert_close(parameter.grad.full_tensor(), trained[name].grad)
        else:
            assert parameter.grad is None
    prompts = [[5, 9, 11], [7], [200, 3]]
    answers = {"max_new_tokens": 5, "stop_ids": [3]}
    if ranks.first:
        with leading(divided, ranks):
            found = generate(divided, prompts, **answers)
        assert found == generate(plain, prompts, **answers)
    else:
        follow(divided, ranks)
    ranks.wait_for_all()
    distributed.destroy_process_group()


def _adapted(folder: Path) -> Any:
    """Frozen weights of 16 bits with adapters of 32, as on a GPU."""
    model = load_base(folder, dtype=torch.bfloat16, on="cpu")
    lora = Lora(r=4, lora_dropout=0.0)
    return attach_lora(
        model, lora, model_dir=folder, base_id="tiny", revision="r1", quantised=False, gradient_checkpointing=False
    )
