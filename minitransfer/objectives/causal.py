"""Predict the next token."""
from __future__ import annotations

import torch
from torch import Tensor

from ..nn.model import Model
from .base import ask_head


class Causal:
    """-sum over t of log p(x[t] | x[<t]), each text for itself.

    The head shifts by one and leaves out what nothing predicts: padding, and the first token of each text of a packed row. A batch that brings
    its own `labels` (ids, IGNORE where nothing is asked) is asked only these.
    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", equation 1.
    """

    name = "causal"

    def most_targets(self, n: int) -> int:
        """How many of n positions have a target at most."""
        return n

    def __call__(self, model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int | Tensor]:
        return ask_head(model, batch, batch["input_ids"], batch.get("labels", batch["input_ids"]))
