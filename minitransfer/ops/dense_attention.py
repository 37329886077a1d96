"""Attention with the T x S matrix held once: two batched products and a softmax, with the backward pass by hand.

    s = scale q k^T       p = softmax(s over what the mask allows)       out = d(p) v             d = dropout, d(p) = p * keep / (1 - rate)

    dv = d(p)^T dout      dp = d(dout v^T)      ds = p * (dp - sum_j p dp)      dq = scale ds k      dk = scale ds^T q

What autograd would keep between the passes is p, d(p) and the mask of the dropout; here it is p and the mask (1 byte a number).
On a CPU this beats the fused kernel of PyTorch wherever that one has no fast path: 16-bit numbers, and dropout.
Source: Vaswani et al. 2017, equation 1.
"""
from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from .dropout import draw_keep, rounded


def reference(q: Float[Tensor, "B H T Dh"], k: Float[Tensor, "B H S Dh"], v: Float[Tensor, "B H S Dh"],
              mask: Bool[Tensor, "#B #H T S"] | None = None) -> Float[Tensor, "B H T Dh"]:
    """The same without dropout, left to autograd; rows with nothing to attend give zeros."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is None:
        return scores.softmax(-1) @ v
    scores = scores.masked_fill(~mask, -math.inf).masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return (scores.softmax(-1) * mask) @ v


def cost(B: int, H: int, T: int, S: int, Dh: int, bytes_per_number: int = 4) -> dict[str, int]:
    """flop_forward = 4 B H T S Dh, flop_backward twice that; bytes_kept: p and the dropout's mask."""
    return {"flop_forward": 4 * B * H * T * S * Dh, "flop_backward": 8 * B * H * T * S * Dh, "bytes_kept": B * H * T * S * (bytes_per_number + 1)}


class DenseAttention(torch.autograd.Function):
    """The formulas of the module's docstring."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, forbidden: Tensor | None, rate: float) -> Tensor:
        ctx.scale, ctx.factor = 1 / math.sqrt(q.shape[-1]), 1.0
        q = q * ctx.scale
        scores = q @ k.transpose(-2, -1)                                          # (B, H, T, S)
        if forbidden is not None:
            scores.masked_fill_(forbidden, -math.inf)
        p, keep = torch.softmax(scores, -1, out=scores), None
        if forbidden is not None:
            p.masked_fill_(forbidden.all(-1, keepdim=True), 0.0)                  # softmax of an empty row is NaN; the row is zeros
        dropped_p = p
        if rate:
            dropped, ctx.factor = rounded(rate)
            keep = draw_keep(p, dropped)
            dropped_p = torch.where(keep, p, 0.0)
        ctx.save_for_backward(q, k, v, p, keep)
        return dropped_p @ (v * ctx.factor if rate else v)                        # the factor on v: it is S / Dh times smaller than p

    @staticmethod
    @once_differentiable
    def backward(ctx, dout: Tensor):
        q, k, v, p, keep = ctx.saved_tensors
        dout = dout if keep is None else dout * ctx.factor
        dropped_p, dp = p, dout @ v.transpose(-2, -1)                             # (B, H, T, S)
        if keep is not None:
            dropped_p, dp = torch.where(keep, p, 0.0), torch.where(keep, dp, 0.0)
        dv = dropped_p.transpose(-2, -1) @ dout
        ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)            # p * (dp - sum_j p dp), in one pass
        return (ds @ k).mul_(ctx.scale), ds.transpose(-2, -1) @ q, dv, None, None  # q holds the scale already


def dense_attention(q: Float[Tensor, "B H T Dh"], k: Float[Tensor, "B H S Dh"], v: Float[Tensor, "B H S Dh"],
                    mask: Bool[Tensor, "#B #H T S"] | None = None, dropout: float = 0.0) -> Float[Tensor, "B H T Dh"]:
    """softmax(q k^T / sqrt(Dh)) v over what the mask allows; a query that may look nowhere gets zeros.

    Args: mask: True = may attend; None: everything is allowed; dropout: probability in [0, 1), from torch's default generator (CPU).
    """
    return DenseAttention.apply(q, k, v, None if mask is None else ~mask, dropout)
