"""Matrices in 4 bits: NormalFloat, whose 16 levels are quantiles of a normal distribution, with an absmax for each block of 64 numbers.

    w ~ q_code a        a = max of the block |w|        code = argmin_i |w / a - q_i|

    q: -1 ... 0 ... 1:  8 levels from 0 up, 8 from 0 down, 0 once: Phi^-1 at even steps from 1/2 to `OFFSET`, over the largest

Double quantisation holds the absmax themselves in 8 bits: less their mean, 256 of them to one scale.

    bytes a number = 1/2 + 1/64 + 4 / (64 * 256) = 0.5159        with fp32 absmax: 1/2 + 4/64 = 0.5625

Source: Dettmers et al. 2023, "QLoRA", section 3 and appendix E (levels). Differs: the 8 bits of an absmax are even steps (int8), not an 8-bit float.
"""
from __future__ import annotations

import functools
import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import pad

from . import int8

BLOCK, BLOCKS = 64, 256                                             # numbers that share an absmax, absmax that share a scale
OFFSET = 1 - (1 / 32 + 1 / 30) / 2                                  # the outermost quantile: with 16 and with 15 levels, half of one is left out; their mean


@functools.cache
def levels() -> Float[Tensor, "16"]:
    """The levels from -1 to 1, in fp64."""
    def half(n: int) -> Tensor:
        """Quantiles from 0 up at n even steps, without 0 itself."""
        return torch.special.ndtri(torch.linspace(OFFSET, 0.5, n + 1, dtype=torch.float64)[:-1]).flip(0)
    below, above = half(7), half(8)
    return torch.cat([-below.flip(0), below.new_zeros(1), above]) / above[-1]


def nearest(x: Float[Tensor, "*N"]) -> UInt8[Tensor, "*N"]:
    """The number of the level nearest to each x in [-1, 1]."""
    q = levels()
    return torch.bucketize(x, ((q[1:] + q[:-1]) / 2).to(x), out_int32=True).to(torch.uint8)


def pack(codes: UInt8[Tensor, "_"]) -> UInt8[Tensor, "N"]:
    """Two codes a byte, the first in the upper half."""
    return codes[::2] << 4 | codes[1::2]


def unpack(packed: UInt8[Tensor, "N"]) -> UInt8[Tensor, "_"]:
    return torch.stack([packed >> 4, packed & 15], dim=-1).flatten()


def blocks(flat: Tensor, size: int) -> Float[Tensor, "n size"]:
    """Rows of `size` numbers, the last one filled with zeros."""
    return pad(flat, (0, -len(flat) % size)).view(-1, size)


def held_bytes(F: int, D: int) -> int:
    """What codes and the absmax in 8 bits take: 0.5159 a number, if nothing is filled up."""
    blocks = math.ceil(F * D / BLOCK)
    return blocks * BLOCK // 2 + blocks + 4 * math.ceil(blocks / BLOCKS) + 4


def quantise(weight: Float[Tensor, "*shape"], double: bool = True) -> tuple[Tensor, ...]:
    """The codes, two a byte; then what `absmax_of` reads: (absmax,) in fp32, or with `double` (their codes, their scales, their mean)."""
    rows = blocks(weight.detach().float().flatten(), BLOCK)                      # (n, 64)
    absmax = rows.abs().amax(1)
    unit = rows / torch.where(absmax > 0, absmax, 1.0)[:, None]
    packed = pack(nearest(unit).flatten())
    if not double:
        return packed, absmax
    mean = absmax.mean()
    codes, scale = int8.quantise(blocks(absmax - mean, BLOCKS))
    return packed, codes.flatten()[: len(absmax)].clone(), scale, mean


def absmax_of(codes: Tensor, *more: Tensor) -> Float[Tensor, "n"]:
    """The absmax of each block, in fp32."""
    if not more:
        return codes
    scale, mean = more
    return codes * scale[:, 0].repeat_interleave(BLOCKS)[: len(codes)] + mean


def dequantise(shape: torch.Size, packed: UInt8[Tensor, "N"], *absmax: Tensor) -> Float[Tensor, "*shape"]:
    """The numbers in fp32."""
    table = levels().to(packed.device, torch.float32)
    both = torch.stack([table.repeat_interleave(16), table.repeat(16)], dim=-1)          # (256, 2): what a byte stands for
    rows = both[packed.int()].view(-1, BLOCK)
    rows *= absmax_of(*absmax)[:, None]
    return rows.flatten()[: math.prod(shape)].view(shape)
