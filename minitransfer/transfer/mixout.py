"""Mixout: in every training step a random part of the weights is back where it started.

    w' = ((1 - M) w + M u - p u) / (1 - p) = u where M, u + (w - u) / (1 - p) elsewhere        M ~ Bernoulli(p) for each weight, u: its start

On average w' is w: the further a weight has gone, the more it is shaken, which pulls it back. Dropout is the case u = 0.
Source: Lee et al. 2020, "Mixout: Effective Regularization to Finetune Large-scale Pretrained Language Models". Deviations: every pretrained
parameter that trains is mixed, biases and norms too, where the authors' code mixes the matrices of Linears; the gradient is that of the formula, and has
the 1 / (1 - p) which their code leaves out.
"""
from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from ..nn.model import Model
from ..objectives import Objective
from .forgetting import Keep, pretrained


def mixed(w: Float[Tensor, "*N"], start: Float[Tensor, "*N"], p: int | float, generator: torch.Generator) -> Float[Tensor, "*N"]:
    """w' of the module's docstring; the gradient reaches w only where it is not mixed."""
    back = torch.rand(w.shape, generator=generator, device=generator.device) < p
    return torch.where(back, start, start + (w - start) / (1 - p))


class Asked(nn.Module):
    """An objective as a module, so that `functional_call` can run it on other weights."""

    def __init__(self, model: Model, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int | Tensor]:
        return self.objective(self.model, batch, generator)


def mixout(p: int | float = 0.9) -> Keep:
    """Mix what trains, but what is new with the task, with where it started; evaluation sees the weights themselves.

    Of an adapter it is the adapter's own matrices that are mixed with their start, at which they change nothing.

    Args:   p: the probability of a weight to be back at its start, in [0, 1); 0 switches it off. The authors tune 0.7 to 0.9.
    Raises: ValueError for a p out of range, and, in training, for checkpointing=True: the backward pass would compute the blocks again without the mixing.
    """
    if not 0 <= p < 1:
        raise ValueError(f"p={p}; it is the probability of a weight to be back at its start, at least 0 and below 1: 0.7 to 0.9 are usual")

    def keep(model: Model, objective: Objective) -> Objective:
        if p == 0:
            return objective
        start = pretrained(model)

        def loss(model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int | Tensor]:
            if model.checkpointing:
                raise ValueError("mixout with checkpointing=True; the backward pass would compute the blocks again with other weights: train without checkpointing")
            now = {f"model.{name}": mixed(w, start[name].to(w.device), p, generator)
                   for name, w in model.named_parameters() if name in start and w.requires_grad}
            answer: tuple[Tensor, int | Tensor] = functional_call(Asked(model, objective), now, (batch, generator))
            return answer
        return loss
    return keep
