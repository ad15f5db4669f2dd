"""What a training that ran out of memory can do without, in the numbers of the job at hand."""

from engine.config.job import JobConfig
from engine.config.micro_batch import halved


def advice(config: JobConfig) -> str:
    """Ways to need less memory, the cheapest first. The first of them, smaller micro-batches, is what a gateway does
    by itself for as long as there is something to halve."""
    hyper = config.hyperparameters
    ways: list[str] = []
    if smaller := halved(hyper.per_device_train_batch_size, hyper.gradient_accumulation_steps):
        ways.append(
            f"hyperparameters.per_device_train_batch_size = {smaller[0]} with gradient_accumulation_steps = "
            f"{smaller[1]} (the same number of rows a step)"
        )
    if not hyper.gradient_checkpointing:
        ways.append("gradient_checkpointing = true")
    ways.append(f"max_length below {hyper.max_length}")
    if config.method == "full":
        ways.append("method = lora")
    elif config.method == "lora":
        ways.append("method = qlora")
    ways.append("a smaller base_model, or a machine with more memory")
    return "To need less memory, in this order: " + "; ".join(ways) + "."
