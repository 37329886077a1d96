"""The two halves of an optimizer step: what a batch adds to the gradients, and what the gradients do to the weights. `captured` has the same two as CUDA graphs."""
from __future__ import annotations

import math

import torch
from torch import Tensor

from ..objectives import Objective
from . import ranks
from .optim import gradient_norm, scale_and_clip
from .run import Run


class Step:
    """Launched one operation after another; the host waits once a step, before it changes a weight."""

    def __init__(self, run: Run, objective: Objective, ask: ranks.Ask):
        self.run, self.objective, self.ask = run, objective, ask

    def __call__(self, batch: dict[str, Tensor], generator: torch.Generator, last: bool = True) -> tuple[Tensor, int | Tensor]:
        """Add the gradients of a batch's summed loss to those of the parameters. Returns: the sum and the number of targets.

        Args: last: is it the last batch of the step?
        """
        with self.run.precision.autocast(), self.run.for_backward.watched(batch["input_ids"].shape):
            loss, n = self.ask(self.objective, self.run.model, batch, generator, last=last)
        self.run.precision.backward(loss)
        return loss.detach(), n

    def update(self, loss_sum: Tensor, counted: Tensor) -> Tensor:
        """Change the weights, if loss and gradient are finite. Returns: the loss per target, the norm of its gradient and the number of targets, float64."""
        run, targets = self.run, max(int(counted), 1)
        run.precision.unscale(run.optimizer)
        mean_loss, grad_norm = torch.stack([loss_sum / targets, gradient_norm(run.trained.values()) / targets]).tolist()
        if math.isfinite(run.precision.must_be_finite(mean_loss, grad_norm)):
            # once per step: micro-batches hold different numbers of targets, averaging their averages would weigh them wrongly
            scale_and_clip(run.trained.values(), targets, grad_norm, run.settings.max_grad_norm)
            run.precision.step(run.optimizer)
            run.optimizer.zero_grad(set_to_none=True)
        return torch.tensor([mean_loss, grad_norm, int(counted)], dtype=torch.float64)
