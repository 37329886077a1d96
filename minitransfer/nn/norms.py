"""What keeps the stream at one size: each vector is divided by its own length."""
from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..config import ModelConfig


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps), in float32 or wider: LayerNorm without the mean and without a bias.

    Source: Zhang & Sennrich 2019, equation 4.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(self.weight.dtype)


def make_norm(c: ModelConfig, width: int | None = None) -> nn.Module:
    """The norm this architecture uses, for vectors of `width` (default: the model's)."""
    width = c.d_model if width is None else width
    return RMSNorm(width, c.norm_eps) if c.norm == "rms" else nn.LayerNorm(width, c.norm_eps, bias=c.norm_bias)
