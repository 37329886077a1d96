"""How far apart two domains lie in the vectors a head reads, as losses: by their covariances, or by what a discriminator can tell."""
from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ..nn.heads import BodyOutput, EmbeddingHead, SequenceHead
from ..nn.model import Model
from ..ops.linear import Linear

STEEPNESS = 10      # gamma of the schedule


def vectors(model: Model, body: BodyOutput) -> Float[Tensor, "N D"]:
    """What the model's head reads: one vector a text, or one a token for heads that answer for each token. At least in float32."""
    head: Any = model.head
    read = head.reads(body) if isinstance(head, SequenceHead) else head(body) if isinstance(head, EmbeddingHead) else body.x[body.keep]
    return read.to(torch.promote_types(read.dtype, torch.float32))


def covariance(x: Float[Tensor, "N D"]) -> Float[Tensor, "D D"]:
    """(x - mean)^T (x - mean) / (N - 1)."""
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


def coral_loss(source: Float[Tensor, "N D"], target: Float[Tensor, "M D"]) -> Float[Tensor, ""]:
    """|C_s - C_t|_F^2 / (4 D^2), C: covariances. 0 if a side has a single row, which has none.

    Source: Sun & Saenko 2016, "Deep CORAL: Correlation Alignment for Deep Domain Adaptation".
    """
    if min(len(source), len(target)) < 2:
        return source.sum() * 0.0
    return (covariance(source) - covariance(target)).square().sum() / (4 * source.shape[1]**2)


class Reversed(torch.autograd.Function):
    """Forward x, backward -lambda g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *g: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * g[0], None


def reverse_gradient(x: Float[Tensor, "*N"], strength: int | float = 1.0) -> Float[Tensor, "*N"]:
    """x itself; the gradient that comes back is multiplied by -strength. Source: Ganin et al. 2016."""
    reversed_: Any = Reversed.apply(x, strength)
    return reversed_


def reversal_at(progress: float) -> float:
    """lambda_p = 2 / (1 + exp(-10 p)) - 1 for the share p of the run that is done: from 0 to almost 1, so that a discriminator which knows nothing yet does no harm.

    Source: Ganin et al. 2016, "Domain-Adversarial Training of Neural Networks".
    """
    return 2 / (1 + math.exp(-STEEPNESS * progress)) - 1


class Discriminator(nn.Module):
    """Which domain does a vector come from? Two layers; the logit is that of the target. Source: Ganin et al. 2016."""

    def __init__(self, d_model: int, hidden: int):
        super().__init__()
        self.hidden, self.out = Linear(d_model, hidden), Linear(hidden, 1)

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N"]:
        return self.out(self.hidden(x).relu())[:, 0]

    def loss(self, source: Float[Tensor, "N D"], target: Float[Tensor, "M D"]) -> Float[Tensor, ""]:
        """mean -log p(source | source) + mean -log p(target | target): 2 log 2 if the domains cannot be told apart."""
        s, t = self(source), self(target)
        return binary_cross_entropy_with_logits(s, torch.zeros_like(s)) + binary_cross_entropy_with_logits(t, torch.ones_like(t))
