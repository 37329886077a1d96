"""Dropout with 16 random bits per number: on a CPU, drawing the random numbers is most of what dropout costs.

    y = x * keep / (1 - rate)        dx = dy * keep / (1 - rate)        keep = (16 random bits >= rate * 2^16)

PyTorch's CPU dropout draws one number of 32 bits or more per element, on one thread; here four elements share one draw of 64 bits.
The rate is rounded to a multiple of 2^-16 (0.1 becomes 0.100006), and the scale follows the rounded rate, so the mean is kept exactly.
Other devices use PyTorch's own. The bits come from torch's default generator, so `torch.manual_seed` and gradient checkpointing govern them.
Source: Srivastava et al. 2014, in the inverted form that leaves evaluation alone.
"""
from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import dropout as torch_dropout

LEVELS = 1 << 16


def reference(x: Tensor, rate: float) -> Tensor:
    """PyTorch's dropout: the same distribution up to the rounding of the rate, other draws."""
    return torch_dropout(x, rate)


def cost(n: int, bytes_per_number: int = 4) -> dict[str, int]:
    """Bytes of a forward pass: 2 n random, n of mask, x read and y written."""
    return {"bytes": 2 * n + n + 2 * n * bytes_per_number, "random_bits": 16 * n}


def rounded(rate: float) -> tuple[int, float]:
    """How many of the 2^16 values mean "drop", and the factor for what is kept."""
    dropped = min(round(rate * LEVELS), LEVELS - 1)
    return dropped, LEVELS / (LEVELS - dropped)


def draw_keep(x: Tensor, dropped: int) -> Bool[Tensor, "..."]:
    """One bool per element of x, False with probability dropped / 2^16."""
    n = x.numel()
    bits = torch.empty(-(-n // 4), dtype=torch.int64).random_(-(1 << 63), None).view(torch.int16)
    return (bits[:n] >= dropped - LEVELS // 2).view(x.shape)


def masked(x: Tensor, keep: Tensor, scale: float) -> Tensor:
    """x * keep * scale; a choice between x and 0 is cheaper than a product of a float and a bool."""
    return torch.where(keep, x, 0.0).mul_(scale)


class Dropout16(torch.autograd.Function):
    """The two formulas of the module's docstring; keeps one byte per element."""

    @staticmethod
    def forward(ctx, x: Tensor, rate: float) -> Tensor:
        dropped, ctx.scale = rounded(rate)
        keep = draw_keep(x, dropped)
        ctx.save_for_backward(keep)
        return masked(x, keep, ctx.scale)

    @staticmethod
    def backward(ctx, dy: Tensor):
        (keep,) = ctx.saved_tensors
        return masked(dy, keep, ctx.scale), None


def dropout(x: Float[Tensor, "..."], rate: float) -> Float[Tensor, "..."]:
    """Zero each number with probability `rate` and scale the others by 1 / (1 - rate).

    Args:   rate: in [0, 1); 0 returns x itself.
    Raises: ValueError for a rate outside.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate={rate}; it is a probability in [0, 1): give 0.0 to switch dropout off")
    if rate == 0:
        return x
    return Dropout16.apply(x, rate) if x.device.type == "cpu" else torch_dropout(x, rate)


class Dropout(torch.nn.Module):
    """`dropout` as a module: active in training mode only."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return dropout(x, self.rate) if self.training else x

    def extra_repr(self) -> str:
        return f"{self.rate}"
