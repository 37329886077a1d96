"""Philox 4x32-10 in PyTorch's int64: random words as a function of (seed, counter, stream), the same on every device and in every kernel.

Source: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", section 4.3. Kernels: `philox` in kernels/common.cuh.
"""
from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

WORD = (1 << 32) - 1
MULTIPLIERS, STEPS, ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 10


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high 32 bits."""
    return x & WORD, x >> 32 & WORD


def product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high 32 bits of a b, where both have 32 and no step leaves 63."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    return (low + (high << 16)) & WORD, (high + (low >> 16)) >> 16


def philox(seed: Int64[Tensor, ""], counter: Int64[Tensor, "*N"], stream: Int64[Tensor, ""]) -> Int64[Tensor, "4 *N"]:
    """Four words in [0, 2^32) for each counter."""
    (c0, c1), (c2, c3), key = halves(counter), halves(stream), halves(seed)
    for n in range(ROUNDS):
        (low0, high0), (low1, high1) = product(MULTIPLIERS[0], c0), product(MULTIPLIERS[1], c2)
        k0, k1 = ((k + n * step) & WORD for k, step in zip(key, STEPS, strict=True))
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return torch.stack([c0, c1, c2, c3])
