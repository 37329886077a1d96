"""Predict the next token."""
from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from ..nn.heads import IGNORE
from ..nn.model import Model
from .base import body_inputs, tokens_of


class Causal:
    """-sum over t of log p(x[t] | x[<t]), each text for itself.

    A token is a target if the position before it holds a token of the same document: neither padding nor the end of another text predicts anything.
    A batch that brings its own `labels` (ids, IGNORE where nothing is asked) is asked only these.
    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", equation 1.
    """

    name = "causal"

    def labels(self, batch: dict[str, Tensor]) -> Int[Tensor, "B T"]:
        """The ids, and IGNORE where a token is no target; the head shifts them by one."""
        keep = tokens_of(batch)
        asked = keep.clone()
        asked[:, 1:] &= keep[:, :-1]
        if (documents := batch.get("document_ids")) is not None:
            asked[:, 1:] &= documents[:, 1:] == documents[:, :-1]
        return batch.get("labels", batch["input_ids"]).masked_fill(~asked, IGNORE)

    def __call__(self, model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int | Tensor]:
        return model.head.loss(model.body(**body_inputs(batch, batch["input_ids"])), self.labels(batch))
