"""Learn which of two responses is preferred, without a reward model."""
from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..nn.heads import IGNORE, VocabularyHead
from ..nn.model import Model
from ..nn.vocabulary import next_tokens
from .base import INPUTS


def log_likelihood(model: Model, batch: dict[str, Tensor]) -> Float[Tensor, "B"]:
    """The sum over the targets of each row of log p(target | everything before), in nats.

    Raises: ValueError for a model without a causal head.
    """
    if not (isinstance(model.head, VocabularyHead) and model.head.shift):
        raise ValueError(f'a model with head "{model.head_name}"; responses are scored by a causal head: load it with head="causal"')
    inputs: dict[str, Any] = {name: batch[name] for name in INPUTS if name in batch}
    body = model.body(**inputs)
    targets = next_tokens(batch["labels"], body)                                 # (B, T)
    wanted = targets != IGNORE
    log_p = model.head.logits(body.x[wanted]).float().log_softmax(-1).gather(1, targets[wanted][:, None])[:, 0]
    return torch.zeros(len(targets), device=log_p.device).index_add(0, wanted.nonzero()[:, 0], log_p)


class Preference:
    """-log sigmoid(beta (log p(chosen) - log p(rejected) - the same of the reference)), summed over pairs: direct preference optimisation.

    Args:   reference: the model as it was before; frozen and in evaluation mode here. beta: how dear it is to leave it, above 0.
            Batches are those of `PreferenceBatches`: first the chosen rows, then the rejected ones.
    Source: Rafailov et al. 2023, "Direct Preference Optimization", equation 7.
    Raises: ValueError for a beta out of range, or a batch that is not made of pairs.
    """

    name = "preference"

    def __init__(self, reference: Model, beta: int | float = 0.1):
        if beta <= 0:
            raise ValueError(f"beta={beta}; it weighs the distance from the reference and is above 0: 0.1 to 0.5 are usual")
        self.reference, self.beta = reference.eval().requires_grad_(False), beta

    def __call__(self, model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int | Tensor]:
        if len(batch["input_ids"]) % 2:
            raise ValueError(f"a batch of {len(batch['input_ids'])} rows; it holds pairs, the chosen rows and then the rejected: use PreferenceBatches")
        with torch.no_grad():
            before = log_likelihood(self.reference, batch)
        better, worse = (log_likelihood(model, batch) - before).chunk(2)
        return -logsigmoid(self.beta * (better - worse)).sum(), len(better)
