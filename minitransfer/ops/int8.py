"""Matrices in 8 bits, each row with a scale of its own.

    Q = round(W / s),  s = max_j |W_j| / top        W ~ s Q        |W - s Q| <= s / 2

Source: Dettmers et al. 2022 (LLM.int8()), equation 1 (absmax), by row.
"""
from __future__ import annotations

import torch
from jaxtyping import Float, Int8
from torch import Tensor


def held_bytes(F: int, D: int) -> int:
    """What codes and scales take."""
    return F * D + 4 * F


def quantise(weight: Float[Tensor, "F D"], top: int = 127) -> tuple[Int8[Tensor, "F D"], Float[Tensor, "F 1"]]:
    """The codes, in [-top, top], and the scales in fp32. A row of zeros has the scale 0."""
    weight = weight.detach().float()
    scale = weight.abs().amax(1, keepdim=True) / top                             # (F, 1)
    return (weight / torch.where(scale > 0, scale, 1.0)).round_().to(torch.int8), scale


def dequantise(shape: torch.Size, codes: Int8[Tensor, "F D"], scale: Float[Tensor, "F 1"]) -> Float[Tensor, "F D"]:
    """s Q, in fp32. The codes have the shape of the matrix already."""
    return codes * scale
