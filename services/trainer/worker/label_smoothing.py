"""Label smoothing without logits: it is linear in the last hidden states."""

from typing import Any

import torch

from engine.errors import JobError, Violation

_FIELD = "hyperparameters.label_smoothing_factor"


class LabelSmoothing:
    """Term that label smoothing adds to the negative log-likelihood.

    With logits z = Wh + b, the smoothed loss (1 - e)(-log p_y) + e mean_v(-log p_v) is -log p_y + e(z_y - mean_v z_v),
    and the mean of the logits is the mean row of W times h. The Trainer's own smoothing takes a second forward pass.
    """

    def __init__(self, model: Any, factor: float) -> None:
        """Raises JobError("LABEL_SMOOTHING_UNAVAILABLE") if the model scales or caps its logits."""
        self._model, self._factor = model, factor
        self._mean: tuple[torch.Tensor, torch.Tensor] | None = None
        self._check()

    def added_loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns the sum over n positions; `hidden` is [n, width], `labels` [n]."""
        head = self._model.get_output_embeddings()
        mean, mean_bias = self._mean_row(head)
        rows = torch.nn.functional.embedding(labels, head.weight).float()
        added = (hidden.float() * (rows - mean)).sum()
        if head.bias is not None:
            added = added + (head.bias[labels].float() - mean_bias).sum()
        return self._factor * added

    def _mean_row(self, head: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if self._mean is not None:
            return self._mean
        bias = head.weight.new_zeros(()) if head.bias is None else head.bias.float().mean()
        mean = head.weight.mean(dim=0, dtype=torch.float32), bias
        if not head.weight.requires_grad:
            self._mean = mean
        return mean

    def _check(self) -> None:
        head, hidden = self._model.get_output_embeddings(), []
        ids = torch.arange(8, device=head.weight.device)[None] % head.weight.shape[0]
        was_training = self._model.training
        self._model.eval()
        # Not in inference mode: FSDP would gather into tensors that training cannot use afterwards.
        with torch.no_grad(), head.register_forward_pre_hook(lambda _, given: hidden.append(given[0])):
            logits = self._model(input_ids=ids, use_cache=False).logits.float()
            plain = torch.nn.functional.linear(hidden[0], head.weight, head.bias).float()
        self._model.train(was_training)
        if not torch.allclose(logits, plain, rtol=1e-2, atol=1e-2 * float(plain.abs().max())):
            message = "The base model scales or caps its logits, so label smoothing cannot be computed."
            raise JobError(
                "LABEL_SMOOTHING_UNAVAILABLE", message, f"Remove {_FIELD}.", [Violation(f"spec.{_FIELD}", message)]
            )
