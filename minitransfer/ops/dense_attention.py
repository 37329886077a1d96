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

from .dropout import draw_keep, kept, rounded


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
    """The formulas of the module's docstring; batch and heads are one dimension, and each (T, Dh) lies in one piece: twice as fast to multiply."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: float) -> Tensor:
        ctx.shape, ctx.scale, ctx.factor = q.shape, 1 / math.sqrt(q.shape[-1]), 1.0
        q, k, v = ((t * f).flatten(0, 1) if f != 1 else t.flatten(0, 1) for t, f in ((q, ctx.scale), (k, 1), (v, 1)))
        p = softmax_where(q @ k.transpose(-2, -1), mask, ctx.shape[:2])           # (B*H, T, S)
        keep = None
        if rate:
            dropped, ctx.factor = rounded(rate)
            keep = draw_keep(p, dropped)
        ctx.save_for_backward(q, k, v, p, keep)
        out = p @ v if keep is None else kept(p, keep) @ (v * ctx.factor)         # the factor on v: it is S / Dh times smaller than p
        return out.view(ctx.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, dout: Tensor):
        q, k, v, p, keep = ctx.saved_tensors
        dout = dout.reshape(q.shape) if keep is None else dout.reshape(q.shape) * ctx.factor
        dropped_p, dp = p, dout @ v.transpose(-2, -1)                             # (B*H, T, S)
        if keep is not None:
            dropped_p, dp = kept(p, keep), kept(dp, keep)
        dv = dropped_p.transpose(-2, -1) @ dout
        ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)            # p * (dp - sum_j p dp), in one pass
        dq, dk = (ds @ k).mul_(ctx.scale), ds.transpose(-2, -1) @ q               # q holds the scale already
        return *(t.view(*ctx.shape[:2], *t.shape[1:]) for t in (dq, dk, dv)), None, None


def softmax_where(scores: Float[Tensor, "N T S"], mask: Bool[Tensor, "#B #H T S"] | None, heads: torch.Size) -> Float[Tensor, "N T S"]:
    """Softmax over what the mask allows, in the place of the scores; N = B H. A row that allows nothing is zeros."""
    if mask is None:
        return torch.softmax(scores, -1, out=scores)
    some = mask.any(-1, keepdim=True)                                             # (B, 1, T, 1)
    by_head = scores.view(*heads, *scores.shape[1:])
    by_head += torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device).masked_fill_(~mask & some, -math.inf)   # adding is faster than choosing
    p = torch.softmax(by_head, -1, out=by_head)
    return (p if bool(some.all()) else p.mul_(some.to(p.dtype))).view(scores.shape)


def dense_attention(q: Float[Tensor, "B H T Dh"], k: Float[Tensor, "B H S Dh"], v: Float[Tensor, "B H S Dh"],
                    mask: Bool[Tensor, "#B #H T S"] | None = None, dropout: float = 0.0) -> Float[Tensor, "B H T Dh"]:
    """softmax(q k^T / sqrt(Dh)) v over what the mask allows; a query that may look nowhere gets zeros.

    Args: mask: True = may attend; None: everything is allowed; dropout: probability in [0, 1), from torch's default generator (CPU).
    """
    return DenseAttention.apply(q, k, v, mask, dropout)
