"""Tests for the losses in the events and the weights that a training changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from datasets import load_from_disk
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM
from transformers.trainer_pt_utils import LabelSmoother
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from chassis.child.phases import Phases
from engine.config.trl_arguments import sft_arguments
from engine.errors import JobError
from engine.model import load
from engine.model.adapter import load_adapter
from engine.model.score import score
from finetuneflow.v1.event_pb2 import CheckpointSaved, Eval, Log
from services.trainer.worker.events import PHASES, TrainingCallback
from services.trainer.worker.label_smoothing import LabelSmoothing
from services.trainer.worker.loss import Trainer
from services.trainer.worker.methods import trainable_model
from services.trainer.worker.progress import Progress
from services.trainer.worker.ranks import Ranks
from services.trainer.worker.recipe import train
from services.trainer.worker.stopwatch import Stopwatch
from services.trainer.worker.training_log import TrainingLog
from tests.services.trainer.parts import Recorder


def _arguments(child_input: Any) -> dict[str, Any]:
    arguments = sft_arguments(
        child_input.config, total_steps=child_input.total_steps, output_dir=str(child_input.out_dir), device="cpu"
    )
    arguments |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "eval_strategy": "no"}
    return {
        "args": SFTConfig(**arguments),
        "train_dataset": load_from_disk(str(child_input.data_dir / "train")),
        "processing_class": AutoTokenizer.from_pretrained(child_input.model.path),
    }


def _callback(child_input: Any) -> TrainingCallback:
    sink = Recorder()
    return TrainingCallback(
        sink,
        Phases(sink, PHASES, pausable=False),
        child_input.config.hyperparameters,
        curriculum=None,
        restored=None,
        ranks=Ranks(),
        progress=Progress(),
        log=TrainingLog(child_input.out_dir, None),
        stopwatch=Stopwatch("cpu"),
        peak_tokens_per_second=None,
        trainer_dir=child_input.out_dir,
        out_dir=child_input.out_dir,
    )


@pytest.mark.parametrize("items", [None, 37])
def test_scoring_only_trained_positions_keeps_loss_and_gradients(make_input: Any, items: int | None) -> None:
    """It is an optimisation: the trained model must be the same."""
    child_input = make_input(lora={"lora_dropout": 0.0})
    losses, gradients = [], []
    for ours in (False, True):
        torch.manual_seed(7)
        model = trainable_model(child_input.config, child_input.model, "cpu")
        trainer = (
            Trainer(_callback(child_input), None, Ranks(), model=model, **_arguments(child_input))
            if ours
            else SFTTrainer(model=model, **_arguments(child_input))
        )
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
        model.train()
        loss = trainer.compute_loss(model, batch, num_items_in_batch=items)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("items", [None, 37])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_label_smoothing_equals_that_of_transformers(make_input: Any, items: int | None, method: str) -> None:
    """Computed without logits and without a second forward pass, it must train the same model."""
    child_input = make_input(method=method, lora={"lora_dropout": 0.0}, label_smoothing_factor=0.1)
    losses, gradients = [], []
    for ours in (True, False):
        torch.manual_seed(7)
        model = trainable_model(child_input.config, child_input.model, "cpu")
        trainer = Trainer(_callback(child_input), None, Ranks(), model=model, **_arguments(child_input))
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
        model.train()
        if ours:
            trainer.smoothing = LabelSmoothing(model, 0.1)
            loss = trainer.compute_loss(model, batch, num_items_in_batch=items)
        else:
            logits = {key: value for key, value in batch.items() if key != "labels"}
            loss = LabelSmoother(0.1)(model(**logits), batch["labels"], shift_labels=True, num_items_in_batch=items)
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-7)


def test_label_smoothing_leaves_the_evaluation_loss_alone(make_input: Any) -> None:
    """A perplexity of smoothed losses could be compared with nothing."""
    child_input, sink = make_input(total_steps=5, label_smoothing_factor=0.5), Recorder()
    train(child_input, sink)
    checkpoint = child_input.out_dir / sink.of(CheckpointSaved)[-1].path
    model = load_adapter(load.load_base(child_input.model.path, dtype=torch.float32, on="cpu"), checkpoint)
    expected = score(model, list(load_from_disk(str(child_input.data_dir / "eval"))), lambda _: None)
    assert sink.of(Eval)[-1].eval_loss == pytest.approx(expected.loss, rel=1e-5)


def test_label_smoothing_of_capped_logits_is_refused() -> None:
    """The formula would be wrong for them, and nothing would show it."""
    config = Gemma2Config(
        vocab_size=384, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, final_logit_softcapping=0.05,
    )  # fmt: skip
    with pytest.raises(JobError) as refused:
        LabelSmoothing(Gemma2ForCausalLM(config), 0.1)
    assert refused.value.reason == "LABEL_SMOOTHING_UNAVAILABLE"


def test_neftune_adds_noise_in_training_only(make_input: Any) -> None:
    """With noise in evaluation, the best step would be chosen by chance."""
    losses, evaluations = [], []
    for alpha in (None, 5.0):
        sink = Recorder()
        train(make_input(f"out-{alpha}", total_steps=5, learning_rate=1e-9, neftune_noise_alpha=alpha), sink)
        losses.append(sink.of(Log)[0].loss)
        evaluations.append(sink.of(Eval)[0].eval_loss)
    assert losses[0] != losses[1]
    assert evaluations[0] == pytest.approx(evaluations[1], abs=1e-6)


@pytest.mark.parametrize("batch_size", [3, 4])
def test_evaluation_loss_weights_every_token_equally(make_input: Any, batch_size: int) -> None:
    """The loss that selects the best step would otherwise depend on the batch size, and differ from stage 3's."""
    child_input, sink = make_input(total_steps=5, per_device_eval_batch_size=batch_size), Recorder()

    train(child_input, sink)

    checkpoint = child_input.out_dir / sink.of(CheckpointSaved)[-1].path
    model = load_adapter(load.load_base(child_input.model.path, dtype=torch.float32, on="cpu"), checkpoint)
    expected = score(model, list(load_from_disk(str(child_input.data_dir / "eval"))), lambda _: None)
    assert sink.of(Eval)[-1].eval_loss == pytest.approx(expected.loss, rel=1e-5)


def test_packed_rows_do_not_attend_to_each_other(make_input: Any) -> None:
    """Otherwise a row would learn to answer from a text that it never has at inference."""
    from trl.data_utils import pack_dataset

    child_input = make_input(packing=True, per_device_train_batch_size=2, lora={"lora_dropout": 0.0})
    packed = pack_dataset(load_from_disk(str(child_input.data_dir / "train")), 64, "bfd", {"keep_in_memory": True})
    arguments = _arguments(child_input) | {"train_dataset": packed}
    torch.manual_seed(7)
    model = trainable_model(child_input.config, child_input.model, "cpu")
    trainer = Trainer(_callback(child_input), None, Ranks(), model=model, **arguments)
    model.eval()
    total, count = 0.0, 0
    for row in packed:
        batch = trainer.data_collator([row])
        predicted = int((batch["labels"][:, 1:] != -100).sum())
        with torch.no_grad():
            total += trainer.compute_loss(model, batch).item() * predicted
        count += predicted

    expected = score(model, list(load_from_disk(str(child_input.data_dir / "train"))), lambda _: None)

    assert count == expected.num_trained_tokens
    assert total / count == pytest.approx(expected.loss, rel=1e-5)


def test_throughput_counts_rows_and_not_packs(make_input: Any) -> None:
    """Rows and tokens per second would otherwise be those of packs."""
    child_input, sink = (
        make_input(packing=True, per_device_train_batch_size=1, total_steps=5, logging_steps=1),
        Recorder(),
    )
    result = train(child_input, sink)
    lengths = [len(ids) for ids in load_from_disk(str(child_input.data_dir / "train"))["input_ids"]]
    assert 0 < sink.of(Log)[-1].num_tokens <= 5 * 64
    assert result.train_samples_per_second * result.train_runtime_seconds > 5 * 64 / max(lengths)


def test_full_fine_tuning_saves_complete_weights(make_input: Any) -> None:
    """Stages 3 and 4 look for model.safetensors at the top of the checkpoint."""
    child_input, sink = make_input(method="full", total_steps=3, learning_rate=1e-3), Recorder()
    result = train(child_input, sink)
    folder = child_input.out_dir / sink.of(CheckpointSaved)[-1].path
    model = load.load_base(folder, dtype=torch.float32, on="cpu")
    assert result.num_trainable_parameters == sum(p.numel() for p in model.parameters())


def test_quantised_training_still_learns_after_an_evaluation(make_input: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes repacks 4-bit layers at the first evaluation on some CPUs; afterwards no gradients pass through the
    base, and no error is raised."""
    settings: dict[str, Any] = {
        "method": "qlora",
        "total_steps": 12,
        "logging_steps": 12,
        "lora": {"lora_dropout": 0.0},
    }
    undisturbed, disturbed = Recorder(), Recorder()

    train(make_input("undisturbed", held_out=False, **settings), undisturbed)
    child_input = make_input("disturbed", eval_steps=1, early_stopping_patience=0, **settings)
    train(child_input, disturbed)

    assert len(disturbed.of(Eval)) == 12
    assert disturbed.of(Log)[-1].loss == pytest.approx(undisturbed.of(Log)[-1].loss, rel=1e-5)
    model = trainable_model(child_input.config, child_input.model, "cpu")
    assert not any(m.support_avx512bf16_for_cpu for m in model.modules() if isinstance(m, Linear4bit))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_token_shards_are_not_modified(make_input: Any) -> None:
    """Shards are content-addressed: a cache file beside them would break their manifest."""
    child_input = make_input(total_steps=1, packing=True)
    before = sorted(p.name for p in Path(child_input.data_dir).rglob("*"))
    train(child_input, Recorder())
    assert sorted(p.name for p in Path(child_input.data_dir).rglob("*")) == before
