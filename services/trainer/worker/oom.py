"""Advice for a training that ran out of memory, in the numbers of the job at hand."""

from collections.abc import Iterator
from contextlib import contextmanager

from chassis.child import out_of_memory
from engine.config.advice import option
from engine.config.job import JobConfig
from engine.config.micro_batch import halved
from engine.errors import SystemFailure


@contextmanager
def with_advice(config: JobConfig) -> Iterator[None]:
    """Turns an error of memory into a SystemFailure that says how this job can need less."""
    try:
        yield
    except Exception as error:
        reason = out_of_memory.reason_of(error)
        if not reason:
            raise
        message = str(error).split("\n")[0][:1000] or "Memory ran out."
        raise SystemFailure(reason, message, advice(config)) from error


def advice(config: JobConfig) -> str:
    """Lists ways to need less memory, the cheapest first.

    The first one, smaller micro-batches, is what a gateway does by itself while there is something to halve.
    """
    hyper = config.hyperparameters
    ways: list[str] = []
    if smaller := halved(hyper.micro_batch, hyper.accumulation):
        ways.append(
            f"{option('hyperparameters.per_device_train_batch_size', smaller[0])} "
            f"{option('hyperparameters.gradient_accumulation_steps', smaller[1])} (the same number of rows a step)"
        )
    if not hyper.gradient_checkpointing:
        ways.append(option("hyperparameters.gradient_checkpointing", "true"))
    ways.append(f"hyperparameters.max_length below {hyper.max_length}")
    if config.method == "full":
        ways.append(option("method", "lora"))
    elif config.method == "lora":
        ways.append(option("method", "qlora"))
    ways.append("a smaller base_model, or a machine with more memory")
    return "To need less memory, in this order: " + "; ".join(ways) + "."
