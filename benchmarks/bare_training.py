"""The rival of our trainer, a script as users of TRL write it: `python -m benchmarks.bare_training SETTINGS.json`.

SETTINGS.json has the folders `model` and `out`, the file `rows`, the path `clock` for the times of the steps, and the
settings below. Missing settings have TRL's values. With `held_out`, a file of rows, and `afterwards`, a path, it also
does by hand what stages 3 and 4 do, and writes the seconds that this took.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

settings = json.loads(Path(sys.argv[1]).read_text())
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch  # noqa: E402
from datasets import load_dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed  # noqa: E402
from trl.trainer.sft_config import SFTConfig  # noqa: E402
from trl.trainer.sft_trainer import SFTTrainer  # noqa: E402

from benchmarks.step_clock import StepClock  # noqa: E402


def by_hand(trainer: Any, tokenizer: Any, out: Path) -> None:
    """Compares tuned and base model by their loss on the held-out rows and by some answers; saves the adapter with its
    tokenizer."""
    trainer.evaluate()
    model = trainer.accelerator.unwrap_model(trainer.model)
    _answer(model, tokenizer)
    with model.disable_adapter():
        trainer.evaluate()
        _answer(model, tokenizer)
    model.save_pretrained(out / "package")
    tokenizer.save_pretrained(out / "package")


def _answer(model: Any, tokenizer: Any) -> None:
    for line in Path(settings["held_out"]).read_text().splitlines()[:5]:
        prompt = json.loads(line)["prompt"]
        text = (
            prompt
            if isinstance(prompt, str)
            else tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        )
        model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=40, do_sample=False)


torch.set_num_threads(settings["threads"])
set_seed(42)
held_out = settings.get("held_out")
if held_out:
    evaluation = {"eval_strategy": "steps", "eval_steps": settings["eval_steps"], "per_device_eval_batch_size": 8}
else:
    evaluation = {}
tokenizer = AutoTokenizer.from_pretrained(settings["model"])
trainer = SFTTrainer(
    AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32),
    args=SFTConfig(
        output_dir=settings["out"],
        max_steps=settings["steps"],
        max_length=settings["max_length"],
        per_device_train_batch_size=settings["rows_per_batch"],
        gradient_accumulation_steps=settings["accumulation"],
        learning_rate=settings.get("learning_rate", 2e-4),
        lr_scheduler_type="cosine",
        warmup_steps=settings.get("warmup_steps", 0),
        weight_decay=0.01,
        optim="adamw_torch",
        seed=42,
        bf16=settings["bf16"],
        use_cpu=True,
        gradient_checkpointing=settings["checkpointing"],
        completion_only_loss=True,
        train_sampling_strategy="group_by_length" if settings.get("group_by_length") else "random",
        logging_steps=settings["logging_steps"],
        save_strategy="steps",
        save_steps=settings.get("save_steps", settings["steps"]),
        save_total_limit=1,
        report_to="none",
        **evaluation,
    ),
    train_dataset=load_dataset("json", data_files=settings["rows"], split="train"),
    eval_dataset=load_dataset("json", data_files=held_out, split="train") if held_out else None,
    processing_class=tokenizer,
    peft_config=LoraConfig(
        r=16, lora_alpha=32, lora_dropout=settings["dropout"], target_modules="all-linear", task_type="CAUSAL_LM"
    ),
    callbacks=[StepClock(Path(settings["clock"]))],
)
trainer.train()
if settings.get("afterwards"):
    began = time.time()
    by_hand(trainer, tokenizer, Path(settings["out"]))
    Path(settings["afterwards"]).write_text(json.dumps({"began": began, "seconds": time.time() - began}))
