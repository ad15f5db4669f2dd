"""Running out of memory while training, with advice in the numbers of the job at hand."""

from engine.config.job import JobConfig
from finetuneflow.v1.event_pb2 import StageFailed
from finetuneflow.v1.fine_tuning_job_pb2 import FAULT_SYSTEM_ERROR


def classify(error: BaseException) -> str:
    """CUDA_OUT_OF_MEMORY, HOST_OUT_OF_MEMORY, or nothing for every other error."""
    text = str(error).lower()
    if "out of memory" in text and type(error).__name__ in ("OutOfMemoryError", "AcceleratorError", "RuntimeError"):
        return "CUDA_OUT_OF_MEMORY"
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return "HOST_OUT_OF_MEMORY"
    return ""


def failure(error: BaseException, config: JobConfig) -> StageFailed | None:
    """The event that ends the attempt; None when it is not about memory."""
    reason = classify(error)
    if not reason:
        return None
    return StageFailed(
        fault=FAULT_SYSTEM_ERROR,
        reason=reason,
        message=str(error).split("\n")[0][:1000] or "Memory ran out.",
        advice=_advice(config),
    )


def _advice(config: JobConfig) -> str:
    hyper = config.hyperparameters
    batch, accumulation = hyper.per_device_train_batch_size, hyper.gradient_accumulation_steps
    ways: list[str] = []
    if batch > 1:
        half = batch // 2
        rows = batch * accumulation
        ways.append(
            f"hyperparameters.per_device_train_batch_size = {half} with gradient_accumulation_steps = "
            f"{-(-rows // half)} (the same number of rows a step)"
        )
    if not hyper.gradient_checkpointing:
        ways.append("gradient_checkpointing = true")
    ways.append(f"max_length below {hyper.max_length}")
    if config.method == "full":
        ways.append("method = lora")
    elif config.method == "lora":
        ways.append("method = qlora")
    return "Try, in this order: " + "; ".join(ways) + "."
