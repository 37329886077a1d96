"""Attention without the T x S matrix: the online softmax, forward and backward, in plain PyTorch.

Forward, over tiles of keys j for a tile of queries i (m running maximum, l running sum, o running output):

    s = scale * q_i k_j^T          m' = max(m, max_j s)          p = exp(s - m')
    l' = exp(m - m') l + sum_j p   o' = exp(m - m') o + p v_j    at the end: out = o / l,  lse = m + log l

Backward, from q, k, v, out and lse alone (p = exp(s - lse) is made again, tile by tile):

    delta = sum(dout * out)        dv_j = p^T dout               dp = dout v_j^T
    ds = p * (dp - delta)          dq_i = scale * ds k_j         dk_j = scale * ds^T q_i

Memory: O(T Dh) beyond one tile, in both directions.
Dropout multiplies p by a mask / (1 - rate) where it meets v (not in l); the mask of a tile is drawn again from its seed in backward.
Source: Milakov & Gimelshein 2018 (online softmax); Dao et al. 2022, algorithms 1 and 4.
"""
from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

PartOfMask = Callable[[range, range], Tensor | None]    # (queries, keys) -> bool (B or 1, H or 1, t, s); None: everything is allowed


def reference(q: Float[Tensor, "B H T Dh"], k: Float[Tensor, "B H S Dh"], v: Float[Tensor, "B H S Dh"],
              mask: Bool[Tensor, "#B #H T S"] | None = None) -> Float[Tensor, "B H T Dh"]:
    """softmax(q k^T / sqrt(Dh)) v, holding the whole matrix; rows with nothing to attend give zeros."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is None:
        return scores.softmax(-1) @ v
    scores = scores.masked_fill(~mask, -math.inf).masked_fill(~mask.any(-1, keepdim=True), 0.0)
    return (scores.softmax(-1) * mask) @ v


def cost(B: int, H: int, T: int, S: int, Dh: int, bytes_per_number: int = 4) -> dict[str, int]:
    """Floating-point operations and bytes moved, if every tile is read once.

    flop_forward = 4 B H T S Dh;  flop_backward = 10 B H T S Dh (the scores are made again)
    """
    numbers = B * H * Dh * (2 * T + 2 * S)
    return {"flop_forward": 4 * B * H * T * S * Dh, "flop_backward": 10 * B * H * T * S * Dh,
            "bytes_forward": numbers * bytes_per_number, "bytes_backward": 2 * numbers * bytes_per_number}


def tiles(n: int, size: int) -> list[range]:
    return [range(start, min(start + size, n)) for start in range(0, n, size)]


def drop(p: Tensor, rate: float, seed: int, queries: range, keys: range) -> Tensor:
    """The dropout factors of one tile, 0 or 1 / (1 - rate): the same whenever it is asked for the same tile."""
    generator = torch.Generator(p.device).manual_seed((seed * 1_000_003 + queries.start) * 1_000_003 + keys.start & 0x7FFF_FFFF_FFFF_FFFF)
    return (torch.rand(p.shape, generator=generator, device=p.device) >= rate).to(p.dtype) / (1 - rate)


class TiledAttention(torch.autograd.Function):
    """The two algorithms of the module's docstring; sums are held in float32 or wider."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, part: PartOfMask, tile: int, rate: float, seed: int) -> Tensor:
        (B, H, T, Dh), S, scale = q.shape, k.shape[2], 1 / math.sqrt(q.shape[-1])
        wide = torch.promote_types(q.dtype, torch.float32)
        out, lse = torch.empty_like(q), q.new_empty(B, H, T, dtype=wide)
        for queries in tiles(T, tile):
            rows = slice(queries.start, queries.stop)
            m = q.new_full((B, H, len(queries), 1), -math.inf, dtype=wide)
            l, o = torch.zeros_like(m), q.new_zeros(B, H, len(queries), Dh, dtype=wide)  # noqa: E741 (the paper's letter)
            for keys in tiles(S, tile):
                allowed = part(range(S - T + queries.start, S - T + queries.stop), keys)
                if allowed is not None and not allowed.any():
                    continue
                cols = slice(keys.start, keys.stop)
                s = (q[:, :, rows] @ k[:, :, cols].transpose(-2, -1)).to(wide) * scale            # (B, H, t, s)
                if allowed is not None:
                    s = s.masked_fill(~allowed, -math.inf)
                new = torch.maximum(m, s.amax(-1, keepdim=True))
                finite = new.clamp(min=torch.finfo(wide).min)                                     # exp(-inf - -inf) would be NaN
                p, shrink = torch.exp(s - finite), torch.exp(m - finite)
                l = shrink * l + p.sum(-1, keepdim=True)  # noqa: E741
                if rate:
                    p = p * drop(p, rate, seed, queries, keys)
                o = shrink * o + (p.to(v.dtype) @ v[:, :, cols]).to(wide)
                m = new
            out[:, :, rows] = (o / l.clamp(min=torch.finfo(wide).tiny)).to(out.dtype)             # l = 0: nothing to attend, zeros
            lse[:, :, rows] = torch.where(l > 0, m + l.log(), torch.inf)[..., 0]                  # +inf: p = exp(s - lse) is 0 there
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.part, ctx.tile, ctx.rate, ctx.seed = part, tile, rate, seed
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout: Tensor):
        q, k, v, out, lse = ctx.saved_tensors
        T, S, scale, wide = q.shape[2], k.shape[2], 1 / math.sqrt(q.shape[-1]), lse.dtype
        dq, dk, dv = (torch.zeros_like(t, dtype=wide) for t in (q, k, v))
        delta = (dout.to(wide) * out.to(wide)).sum(-1, keepdim=True)                              # (B, H, T, 1)
        for queries in tiles(T, ctx.tile):
            rows = slice(queries.start, queries.stop)
            for keys in tiles(S, ctx.tile):
                allowed = ctx.part(range(S - T + queries.start, S - T + queries.stop), keys)
                if allowed is not None and not allowed.any():
                    continue
                cols = slice(keys.start, keys.stop)
                s = (q[:, :, rows] @ k[:, :, cols].transpose(-2, -1)).to(wide) * scale
                p = torch.exp(s - lse[:, :, rows, None])                                          # (B, H, t, s)
                if allowed is not None:
                    p = p.masked_fill(~allowed, 0.0)
                factor = drop(p, ctx.rate, ctx.seed, queries, keys) if ctx.rate else 1.0
                dp = (dout[:, :, rows] @ v[:, :, cols].transpose(-2, -1)).to(wide) * factor
                ds = p * (dp - delta[:, :, rows])
                dv[:, :, cols] += ((p * factor).to(dout.dtype).transpose(-2, -1) @ dout[:, :, rows]).to(wide)
                dq[:, :, rows] += (ds.to(k.dtype) @ k[:, :, cols]).to(wide) * scale
                dk[:, :, cols] += (ds.to(q.dtype).transpose(-2, -1) @ q[:, :, rows]).to(wide) * scale
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None, None


def tiled_attention(q: Float[Tensor, "B H T Dh"], k: Float[Tensor, "B H S Dh"], v: Float[Tensor, "B H S Dh"],
                    part_of_mask: PartOfMask = lambda queries, keys: None, tile: int = 128, dropout: float = 0.0) -> Float[Tensor, "B H T Dh"]:
    """softmax(q k^T / sqrt(Dh)) v over what the mask allows, with O(T) memory; a query that may look nowhere gets zeros.

    Args:   part_of_mask(queries, keys): bool, True = may attend, for these rows and columns (both count from the first key);
            tile: rows and columns held at a time, in tokens; dropout: probability in [0, 1), drawn from torch's default generator.
    Raises: ValueError if tile < 1. Second derivatives are not available.
    """
    if tile < 1:
        raise ValueError(f"tile={tile}; a tile holds at least one token: give 1 or more")
    seed = int(torch.randint(2**31, ())) if dropout else 0
    return TiledAttention.apply(q, k, v, part_of_mask, tile, dropout, seed)
