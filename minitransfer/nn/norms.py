"""What keeps the stream at one size: each vector is divided by its own length. A norm can also add what a part of the block has made to the stream first."""
from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops.norm import layer_norm_residual, rms_norm_residual


class LayerNorm(nn.Module):
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias.

    Source: Ba et al. 2016, equation 4.
    """

    def __init__(self, width: int, eps: float, bias: bool = True):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Float[Tensor, "*N D"], stream: Float[Tensor, "*N D"] | None = None, rate: float = 0.0, wide: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """y; or, given a stream, the y of stream + dropout(x), and that sum; wide: a kernel may not give y the dtype of x where that is narrower than the stream."""
        y, total = layer_norm_residual(x, stream, self.weight, self.bias, self.eps, rate, wide=wide)
        return y if stream is None else (y, total)


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps), in float32 or wider: LayerNorm without the mean and without a bias.

    Source: Zhang & Sennrich 2019, equation 4.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Float[Tensor, "*N D"], stream: Float[Tensor, "*N D"] | None = None, rate: float = 0.0, wide: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """As LayerNorm."""
        y, total = rms_norm_residual(x, stream, self.weight, self.eps, rate, wide=wide)
        return y if stream is None else (y, total)


def make_norm(c: ModelConfig, width: int | None = None) -> LayerNorm | RMSNorm:
    """The norm this architecture uses, for vectors of `width` (default: the model's)."""
    width = c.d_model if width is None else width
    return RMSNorm(width, c.norm_eps) if c.norm == "rms" else LayerNorm(width, c.norm_eps, bias=c.norm_bias)
