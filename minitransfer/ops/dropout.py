"""Dropout with 16 random bits per number: on a CPU, drawing the random numbers is most of what dropout costs.

    y = x * keep / (1 - rate)        dx = dy * keep / (1 - rate)        keep = (16 random bits >= rate * 2^16)

PyTorch's CPU dropout draws one number of 32 bits or more per element, on one thread, from a slow generator; here four elements share one draw of 64 bits
from SFC64, seeded by one draw of torch's default generator: `torch.manual_seed` and gradient checkpointing govern it.
The product with keep is one of integers, the bits of x times 0 or 1: the CPU does many at once, which it does not for a float and a bool, or a choice.
The rate is rounded to a multiple of 2^-16 (0.1 becomes 0.100006), and the scale follows the rounded rate, so the mean is kept exactly.
Other devices use PyTorch's own.
Source: Srivastava et al. 2014, in the inverted form that leaves evaluation alone; Doty-Humphrey 2010 (SFC64).
"""
from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor
from torch.nn.functional import dropout as torch_dropout

from .dispatch import device_of
from .kernels import rehearsed

LEVELS = 1 << 16
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}      # bytes of a number -> the integer as wide


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


def draw_keep(x: Tensor, dropped: int) -> Int8[Tensor, "..."]:
    """A 0 or 1 per element of x, 0 with probability dropped / 2^16."""
    n, seed = x.numel(), int(torch.randint(1 << 62, ()))
    bits = torch.empty(n, dtype=torch.int16) if rehearsed.get() else torch.from_numpy(np.random.SFC64(seed).random_raw(-(-n // 4)).view(np.int16))
    return bits[:n].ge_(dropped - LEVELS // 2).to(torch.int8).view(x.shape)


def kept(x: Tensor, keep: Int8[Tensor, "..."]) -> Tensor:
    """x where keep is 1, zero where it is 0."""
    return (x.view(INTEGERS[x.element_size()]) * keep).view(x.dtype)


class Dropout16(torch.autograd.Function):
    """The two formulas of the module's docstring; keeps one byte per element."""

    @staticmethod
    def forward(ctx, x: Tensor, rate: float) -> Tensor:
        dropped, ctx.scale = rounded(rate)
        keep = draw_keep(x, dropped)
        ctx.save_for_backward(keep)
        return kept(x, keep).mul_(ctx.scale)

    @staticmethod
    def backward(ctx, dy: Tensor):
        (keep,) = ctx.saved_tensors
        return kept(dy, keep).mul_(ctx.scale), None


def dropout(x: Float[Tensor, "..."], rate: float) -> Float[Tensor, "..."]:
    """Zero each number with probability `rate` and scale the others by 1 / (1 - rate).

    Args:   rate: in [0, 1); 0 returns x itself.
    Raises: ValueError for a rate outside.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"rate={rate}; it is a probability in [0, 1): give 0.0 to switch dropout off")
    if rate == 0:
        return x
    return Dropout16.apply(x, rate) if device_of(x) == "cpu" else torch_dropout(x, rate)


class Dropout(torch.nn.Module):
    """`dropout` as a module: active in training mode only."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return dropout(x, self.rate) if self.training else x

    def extra_repr(self) -> str:
        return f"{self.rate}"
