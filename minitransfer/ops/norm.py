"""Residual + dropout + LayerNorm or RMSNorm in one pass over memory.

    h = residual + dropout(x)            LayerNorm: y = (h - mean h) / sqrt(var h + eps) * weight + bias
                                         RMSNorm:   y = h / sqrt(mean h^2 + eps) * weight

    xhat = (h - mean h) rstd             dh += rstd (g - mean g - xhat mean(g xhat)),  g = dy weight       (RMSNorm: without the two means)
    dx = dh * keep / (1 - rate)          dresidual = dh         dweight = sum_n dy xhat         dbias = sum_n dy

The kernel keeps no dropout mask: backward asks Philox for the same numbers again. Sums are float32 whatever the dtype of x. Under autocast the stream
(residual and h) is float32 and x, which a product has made, 16 bits: the kernel rounds no number of the stream, and y to 16 bits for the next product, or not at all.
Source: Ba et al. 2016, equation 4; Zhang & Sennrich 2019, equation 4. Kernel: kernels/norm.cu.
"""
from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import layer_norm

from .dispatch import check_shapes, draw, pick
from .dropout import dropout
from .kernels import SCALARS, Kernels, vector, whole

WIDEST = 8192       # columns: beyond, a row does not fit the registers of 256 threads
WARPS = 3840        # of the backward pass, whose blocks each leave a sum for weight and bias: a fixed number, for equal bits on every GPU (132 multiprocessors hold them all)


def rms_norm(h: Float[Tensor, "*N D"], weight: Float[Tensor, "D"], eps: float) -> Float[Tensor, "*N D"]:
    """h / sqrt(mean h^2 + eps) * weight, in float32 or wider."""
    wide = h.to(torch.promote_types(h.dtype, torch.float32))
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(weight.dtype)


def reference(x: Float[Tensor, "*N D"], residual: Float[Tensor, "*N D"] | None, weight: Float[Tensor, "D"], bias: Float[Tensor, "D"] | None, eps: float,
              rate: float = 0.0, rms: bool = False) -> tuple[Float[Tensor, "*N D"], Float[Tensor, "*N D"]]:
    """y and h in plain PyTorch."""
    h = dropout(x, rate) if residual is None else residual + dropout(x, rate)
    return rms_norm(h, weight, eps) if rms else layer_norm(h, h.shape[-1:], weight, bias, eps), h


def cost(N: int, D: int, bytes_per_number: int = 4, bytes_of_stream: int | None = None) -> dict[str, int]:
    """Forward reads x and residual, writes h and y; backward reads dy, dh and h, writes dx and dresidual. About 8 and 14 operations a number."""
    b, stream = bytes_per_number, bytes_of_stream or bytes_per_number
    return {"bytes_forward": 2 * N * D * (b + stream), "bytes_backward": N * D * (2 * b + 3 * stream), "flop_forward": 8 * N * D, "flop_backward": 14 * N * D}


def launch_shape(columns: int, pieces_of: int) -> tuple[int, int]:
    """Threads of a block, and pieces that each of them takes."""
    pieces = columns // pieces_of
    threads = min(256, -(-pieces // 32) * 32)
    return threads, -(-pieces // threads)


class NormResidual(torch.autograd.Function):
    """The formulas of the module's docstring, in the kernels of norm.cu."""

    @staticmethod
    def forward(ctx, k: Kernels, threads: int, x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, rate: float,
                random: Tensor | None, rms: bool, wide: bool) -> tuple[Tensor, Tensor]:
        columns, stream = x.shape[-1], x if residual is None else residual
        rows, changes = x.numel() // columns, residual is not None or rate > 0
        y, h = torch.empty_like(stream if wide else x), torch.empty_like(stream) if changes else x
        mean, rstd = (torch.empty(rows, device=x.device) for _ in range(2))
        factors, shifts = whole(weight.float()), None if bias is None else whole(bias.float())
        k("norm_forward", (rows, 1, 1), (threads, 1, 1), y, h if changes else None, mean, rstd, x, residual, factors, shifts, random, columns, rate, eps)
        ctx.save_for_backward(h, mean, rstd, factors, random)
        ctx.run, ctx.rate, ctx.rms, ctx.dtypes = (k, threads, rows, columns), rate, rms, (x.dtype, y.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.has_residual = residual is not None
        ctx.set_materialize_grads(False)
        return y, h if changes else h.view_as(h)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor | None, dh: Tensor | None):
        h, mean, rstd, weight, random = ctx.saved_tensors
        k, threads, rows, columns = ctx.run
        of_x, of_y, of_weight, of_bias = ctx.dtypes
        d_residual, dx = torch.empty_like(h), torch.empty_like(h, dtype=of_x) if ctx.rate > 0 or of_x != h.dtype else None
        blocks = min(rows, WARPS * 32 // threads)
        shares = torch.empty(1 if of_bias is None else 2, blocks, columns, device=h.device)
        k("norm_backward", (blocks, 1, 1), (threads, 1, 1), dx, d_residual, shares[0], None if of_bias is None else shares[1],
          whole(torch.zeros_like(h, dtype=of_y) if dy is None else dy), None if dh is None else whole(dh), h, mean, rstd, weight, random, rows, columns, ctx.rate)
        sums = shares.sum(1).to(of_weight)
        return (None, None, d_residual if dx is None else dx, d_residual if ctx.has_residual else None, sums[0], None if of_bias is None else sums[1].to(of_bias),
                None, None, None, None, None)


def norm_residual(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float, rate: float, random: Tensor | None, rms: bool,
                  wide: bool = False) -> tuple[Tensor, Tensor]:
    columns, stream = x.shape[-1], x if residual is None else residual
    pieces_of = vector(columns, x, stream)
    threads, each = launch_shape(columns, pieces_of)
    limit = (f"D={columns}; a row of more than {WIDEST} does not fit the registers" if columns > WIDEST else "an empty batch" if x.numel() == 0 else
             f"x is {x.dtype} and residual {stream.dtype}; a kernel reads one dtype, or a residual of float32" if stream.dtype not in (x.dtype, torch.float32) else "")
    k = pick("rms_norm_residual" if rms else "layer_norm_residual", "norm.cu", x, residual, weight, bias, limit=limit, STREAM=SCALARS.get(stream.dtype),
             OUT=SCALARS.get((stream if wide else x).dtype), RMS=int(rms), VECTOR=pieces_of, PER_THREAD=each)
    if k is None:
        return reference(x, residual, weight, bias, eps, rate, rms)
    check_shapes("rms_norm_residual" if rms else "layer_norm_residual", rate, residual=(residual, x.shape), weight=(weight, (columns,)), bias=(bias, (columns,)))
    if rate > 0 and random is None:
        random = draw(x.device)
    return NormResidual.apply(k, threads, whole(x), None if residual is None else whole(residual), weight, bias, eps, rate, random, rms, wide)


def layer_norm_residual(x: Float[Tensor, "*N D"], residual: Float[Tensor, "*N D"] | None, weight: Float[Tensor, "D"], bias: Float[Tensor, "D"] | None,
                        eps: float = 1e-5, rate: float = 0.0, random: Tensor | None = None, wide: bool = False) -> tuple[Float[Tensor, "*N D"], Float[Tensor, "*N D"]]:
    """y = LayerNorm(h) and h = residual + dropout(x); residual=None stands for zeros.

    Args:   rate: probability in [0, 1) of zeroing a number of x; random: (seed, step) of the kernel's dropout, two int64 on the device (default: drawn);
            wide: the kernel's y has the dtype of h and not of x.
    """
    return norm_residual(x, residual, weight, bias, eps, rate, random, rms=False, wide=wide)


def rms_norm_residual(x: Float[Tensor, "*N D"], residual: Float[Tensor, "*N D"] | None, weight: Float[Tensor, "D"], eps: float = 1e-6,
                      rate: float = 0.0, random: Tensor | None = None, wide: bool = False) -> tuple[Float[Tensor, "*N D"], Float[Tensor, "*N D"]]:
    """y = RMSNorm(h) and h = residual + dropout(x), as layer_norm_residual."""
    return norm_residual(x, residual, weight, None, eps, rate, random, rms=True, wide=wide)
