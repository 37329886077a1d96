"""Rotary positions on queries and keys, in place.

    (x_j, x_{j+R/2}) <- (x_j cos - x_{j+R/2} sin, x_{j+R/2} cos + x_j sin)        of the angle position w_j, j < R/2: R numbers of a head turn
    backward: the same with the negative angle

Nothing is kept but the positions, if there are any, and the tables of cosines and sines, which all blocks of a model share. The arithmetic is float32 whatever the dtype of q.
Source: Su et al. 2021, equation 34, with the halves paired as in GPT-NeoX (there: neighbours). Kernel: kernels/rope.cu.
"""
from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version

from .dispatch import pick
from .kernels import Kernels, vector, whole

Pair = tuple[Float[Tensor, "*N H Dh"], Float[Tensor, "*N K Dh"]]


def rope_tables(frequencies: Float[Tensor, "half"], length: int) -> tuple[Float[Tensor, "P half"], Float[Tensor, "P half"]]:
    """Cosines and sines of positions 0 ... length - 1, in float32; frequencies: radians a position."""
    angles = torch.arange(length, device=frequencies.device)[:, None].float() * frequencies.float()
    return angles.cos(), angles.sin()


def reference(q: Float[Tensor, "*N H Dh"], k: Float[Tensor, "*N K Dh"], positions: Int[Tensor, "..."] | None,
              cosines: Float[Tensor, "*P half"], sines: Float[Tensor, "*P half"]) -> Pair:
    """Both turned, in plain PyTorch and in new tensors."""
    cos, sin = ((table if positions is None else table[positions])[..., None, :].to(q.dtype) for table in (cosines, sines))     # (*N, 1, half)
    half = cos.shape[-1]

    def turned(x: Tensor) -> Tensor:
        a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)
    return turned(q), turned(k)


def cost(N: int, heads: int, R: int, bytes_per_number: int = 4) -> dict[str, int]:
    """Forward reads and writes the R numbers that turn of each head, of q and k together; backward too. Six operations a pair."""
    return {"bytes_forward": 2 * N * heads * R * bytes_per_number, "bytes_backward": 2 * N * heads * R * bytes_per_number, "flop_forward": 3 * N * heads * R,
            "flop_backward": 3 * N * heads * R}


def turn(kernels: Kernels, to: Pair, given: Pair, positions: Tensor | None, cosines: Tensor, sines: Tensor, direction: float) -> None:
    (q, k), half = given, cosines.shape[1]
    heads, width, pieces_of = q.shape[-2] + k.shape[-2], q.shape[-1], vector(math.gcd(half, q.shape[-1]), q)
    threads = min(256, -(-heads * half // pieces_of // 32) * 32)
    tokens = q.numel() // (q.shape[-2] * width)
    kernels("rope", (tokens, 1, 1), (threads, 1, 1), *to, q, k, cosines, sines, positions, q.shape[-2], k.shape[-2], width, half, len(cosines), direction)


class Rope(torch.autograd.Function):
    """The formula of the module's docstring, in the kernel of rope.cu."""

    @staticmethod
    def forward(ctx, kernels: Kernels, q: Tensor, k: Tensor, positions: Tensor | None, cosines: Tensor, sines: Tensor) -> tuple[Tensor, Tensor]:
        turn(kernels, (q, k), (q, k), positions, cosines, sines, 1.0)
        increment_version([q, k])        # who kept q or k for its own backward is told; mark_dirty refuses two views
        ctx.kernels = kernels
        ctx.save_for_backward(positions, cosines, sines)
        return q.view_as(q), k.view_as(k)

    @staticmethod
    @once_differentiable
    def backward(ctx, dq: Tensor, dk: Tensor):
        positions, cosines, sines = ctx.saved_tensors
        given = whole(dq), whole(dk)
        dq, dk = (torch.empty_like(t) for t in given)
        turn(ctx.kernels, (dq, dk), given, positions, cosines, sines, -1.0)
        return None, dq, dk, None, None, None


def rope(q: Float[Tensor, "*N H Dh"], k: Float[Tensor, "*N K Dh"], positions: Int[Tensor, "..."] | None, cosines: Float[Tensor, "*P half"],
         sines: Float[Tensor, "*P half"]) -> Pair:
    """q and k, turned by their positions; the tensors that were given are overwritten if a kernel does it, and are not to be used afterwards.

    Args:   positions: of each token, in any order, packed texts begin again; broadcast to *N. cosines, sines: of `rope_tables`, half of R wide.
            positions=None: the tables have a row for each token, (*N, half), or for the tokens of one text, (1, T, half).
    Raises: ValueError if more numbers of a head turn than it has, for rows that are not those of the tokens, or for a leaf that requires a gradient.
            A position outside the tables is an error in plain PyTorch, and NaN in a kernel.
    """
    half, width, tokens = cosines.shape[-1], q.shape[-1], q.shape[:-2]
    if 2 * half > width:
        raise ValueError(f"tables of {half} angles; a head of {width} numbers has {width // 2} pairs: give tables of at most {width // 2} columns")
    if any(t.is_leaf and t.requires_grad and torch.is_grad_enabled() for t in (q, k)):
        raise ValueError("q or k is a leaf that requires a gradient; it would be overwritten: give the result of a product, or a clone")
    if positions is None and cosines.shape[:-1] not in (tokens, (1, *tokens[1:])):
        raise ValueError(f"tables of {tuple(cosines.shape[:-1])} rows for {tuple(tokens)} tokens; without positions each token has its row: "
                         "give one for each, one for each of a text, or positions")
    limit = f"q is {q.dtype} and k {k.dtype}; a kernel reads one dtype" if k.dtype != q.dtype else "an empty batch" if q.numel() == 0 or half == 0 else ""
    kernels = pick("rope", "rope.cu", q, k, positions, cosines, sines, limit=limit, VECTOR=vector(math.gcd(half, width), q))
    if kernels is None:
        return reference(q, k, positions, cosines, sines)
    rows = None if positions is None else positions.expand(tokens).reshape(-1).contiguous()
    return Rope.apply(kernels, whole(q), whole(k), rows, cosines.flatten(0, -2).float(), sines.flatten(0, -2).float())
