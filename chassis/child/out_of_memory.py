"""Recognises errors of libraries that ran out of memory. Used by children and supervisors; imports no torch."""

from typing import Final

CUDA: Final = "CUDA_OUT_OF_MEMORY"
HOST: Final = "HOST_OUT_OF_MEMORY"
ADVICE: Final = (
    "Lower hyperparameters.per_device_train_batch_size (in an evaluation: "
    "hyperparameters.per_device_eval_batch_size) or hyperparameters.max_length, or ask the operator for more memory."
)

# By name: the message of another exception may quote data, and data may contain these words.
_LIBRARY_ERRORS = frozenset({"RuntimeError", "OSError", "OutOfMemoryError", "AcceleratorError", "SafetensorError"})
_CUDA_SAYS = ("out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed")
RAY_SAYS: Final = "low on memory"
"""Words of Ray about a node whose main memory ran out."""
_HOST_SAYS = ("can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc", RAY_SAYS)


def reason_of(error: BaseException) -> str:
    """Returns CUDA_OUT_OF_MEMORY, HOST_OUT_OF_MEMORY, or "" for any other error."""
    if isinstance(error, MemoryError):
        return HOST
    if type(error).__name__ not in _LIBRARY_ERRORS:
        return ""
    text = str(error).lower()
    if any(words in text for words in _HOST_SAYS):
        return HOST
    return CUDA if any(words in text for words in _CUDA_SAYS) else ""
