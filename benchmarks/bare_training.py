"""The rival of our trainer, a script as users of TRL write it: `python -m benchmarks.bare_training SETTINGS.json`."""

import json
import os
import sys
from pathlib import Path

settings = json.loads(Path(sys.argv[1]).read_text())
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch  # noqa: E402
from datasets import load_dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed  # noqa: E402
from trl.trainer.sft_config import SFTConfig  # noqa: E402
from trl.trainer.sft_trainer import SFTTrainer  # noqa: E402

from benchmarks.step_clock import StepClock  # noqa: E402

torch.set_num_threads(settings["threads"])
set_seed(42)
trainer = SFTTrainer(
    AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32),
    args=SFTConfig(
        output_dir=settings["out"],
        max_steps=settings["steps"],
        max_length=settings["max_length"],
        per_device_train_batch_size=settings["rows_per_batch"],
        gradient_accumulation_steps=settings["accumulation"],
        learning_rate=2e-4,
        lr_scheduler_type="cosine",
        weight_decay=0.01,
        seed=42,
        bf16=settings["bf16"],
        use_cpu=True,
        gradient_checkpointing=settings["checkpointing"],
        completion_only_loss=True,
        logging_steps=settings["logging_steps"],
        save_steps=settings["steps"],
        save_total_limit=1,
        report_to="none",
    ),
    train_dataset=load_dataset("json", data_files=settings["rows"], split="train"),
    processing_class=AutoTokenizer.from_pretrained(settings["model"]),
    peft_config=LoraConfig(
        r=16, lora_alpha=32, lora_dropout=settings["dropout"], target_modules="all-linear", task_type="CAUSAL_LM"
    ),
    callbacks=[StepClock(Path(settings["clock"]))],
)
trainer.train()
