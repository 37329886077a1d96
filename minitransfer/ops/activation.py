"""Bias + activation, and gated units, each in one pass over memory.

    y = a(x + bias)             dx = dy a'(x + bias)            dbias = sum_n dx
    y = a(gate) up              dgate = dy up a'(gate)          dup = dy a(gate)

What is kept for backward is what came in: a and a' are computed again from it. Arithmetic and the sum for the bias are float32 whatever the dtype of x.
Source: Hendrycks & Gimpel 2016, section 2 (GELU; its tanh form is "gelu_tanh"); Shazeer 2020, section 2 (gated). Kernel: kernels/activation.cu.
"""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, sigmoid, tanh
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu, relu, silu

from .dispatch import check_shapes, pick
from .kernels import Kernels, vector, whole

SHARES, ROWS = 512, 4       # blocks one below the other, a fixed number for equal bits on every GPU; rows a thread takes at a time


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x): Hendrycks & Gimpel 2016, section 2."""
    return x * sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu, "gelu_tanh": partial(gelu, approximate="tanh"), "relu": relu, "silu": silu, "tanh": tanh, "quick_gelu": quick_gelu}
IN_KERNEL = ("gelu", "gelu_tanh", "relu", "silu", "quick_gelu")


def bias_reference(x: Float[Tensor, "*N F"], bias: Float[Tensor, "F"] | None, activation: str) -> Float[Tensor, "*N F"]:
    """a(x + bias) in plain PyTorch, in the dtype of x."""
    return ACTIVATIONS[activation](x if bias is None else x + bias.to(x.dtype))


def gated_reference(gate: Float[Tensor, "*N _"], up: Float[Tensor, "*N F"] | None, activation: str) -> Float[Tensor, "*N F"]:
    """a(gate) up in plain PyTorch; up=None: the halves of `gate`."""
    if up is None:
        gate, up = gate.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * up


def cost(N: int, F: int, gated: bool, bytes_per_number: int = 4) -> dict[str, int]:
    """With a bias x -> y, and x, dy -> dx; gated one tensor more on each side of both. About 20 and 30 operations a number (GELU)."""
    tensors = (3, 5) if gated else (2, 3)
    return {"bytes_forward": tensors[0] * N * F * bytes_per_number, "bytes_backward": tensors[1] * N * F * bytes_per_number,
            "flop_forward": 20 * N * F, "flop_backward": 30 * N * F}


def grid(rows: int, columns: int, pieces_of: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Blocks and threads: one thread for each piece of a row, and SHARES blocks below each other at most."""
    pieces = columns // pieces_of
    threads = min(128, -(-pieces // 32) * 32)
    return (-(-pieces // threads), min(-(-rows // ROWS), SHARES), 1), (threads, 1, 1)


class BiasActivation(torch.autograd.Function):
    """The first line of the module's docstring, in the kernels of activation.cu."""

    @staticmethod
    def forward(ctx, k: Kernels, pieces_of: int, x: Tensor, bias: Tensor | None) -> Tensor:
        rows, columns = ctx.shape = x.numel() // x.shape[-1], x.shape[-1]
        ctx.k, ctx.bias_dtype, ctx.launch = k, None if bias is None else bias.dtype, grid(rows, columns, pieces_of)
        y, wide = torch.empty_like(x), None if bias is None else bias.float()
        k("bias_forward", *ctx.launch, y, x, wide, *ctx.shape)
        ctx.save_for_backward(x, wide)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        x, bias = ctx.saved_tensors
        blocks, threads = ctx.launch
        dx = torch.empty_like(x)
        shares = torch.empty(blocks[1], ctx.shape[1], device=x.device) if ctx.needs_input_grad[3] else None
        ctx.k("bias_backward", blocks, threads, dx, shares, whole(dy), x, bias, *ctx.shape)
        return None, None, dx, None if shares is None else shares.sum(0).to(ctx.bias_dtype)


class Gated(torch.autograd.Function):
    """The second line of the module's docstring; up=None: the halves of `gate`."""

    @staticmethod
    def forward(ctx, k: Kernels, pieces_of: int, gate: Tensor, up: Tensor | None) -> Tensor:
        y = torch.empty_like(gate) if up is not None else gate.new_empty(*gate.shape[:-1], gate.shape[-1] // 2)
        rows, columns = ctx.shape = y.numel() // y.shape[-1], y.shape[-1]
        ctx.k, ctx.launch = k, grid(rows, columns, pieces_of)
        k("gated_forward", *ctx.launch, y, gate, up, *ctx.shape)
        ctx.save_for_backward(gate, up)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor):
        gate, up = ctx.saved_tensors
        dgate, dup = torch.empty_like(gate), None if up is None else torch.empty_like(up)
        ctx.k("gated_backward", *ctx.launch, dgate, dup, whole(dy), gate, up, *ctx.shape)
        return None, None, dgate, dup


def obstacle(activation: str, x: Tensor, other: Tensor | None = None) -> str:
    """What keeps a call from its kernel. Raises: ValueError for an activation that there is not."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}; it is one of {', '.join(map(repr, ACTIVATIONS))}: choose one of these")
    return (f"activation={activation}; kernels know {', '.join(IN_KERNEL)}" if activation not in IN_KERNEL else "an empty batch" if x.numel() == 0 else
            f"gate is {x.dtype} and up {other.dtype}; a kernel reads one dtype" if other is not None and other.dtype != x.dtype else "")


def bias_gelu(x: Float[Tensor, "*N F"], bias: Float[Tensor, "F"] | None, activation: str = "gelu") -> Float[Tensor, "*N F"]:
    """y = a(x + bias): what follows the first product of a feed-forward layer, its bias included.

    Args:   activation: a key of ACTIVATIONS, "gelu" (erf) or "gelu_tanh" as a rule.
    Raises: ValueError for another.
    """
    pieces_of = vector(x.shape[-1], x)
    k = pick("bias_gelu", "activation.cu", x, bias, limit=obstacle(activation, x), ACTIVATION=activation, VECTOR=pieces_of)
    if k is None:
        return bias_reference(x, bias, activation)
    check_shapes("bias_gelu", bias=(bias, x.shape[-1:]))
    return BiasActivation.apply(k, pieces_of, whole(x), bias)


def gated(gate: Float[Tensor, "*N _"], up: Float[Tensor, "*N F"] | None = None, activation: str = "silu") -> Float[Tensor, "*N F"]:
    """y = a(gate) up: SwiGLU ("silu"), GeGLU ("gelu", "gelu_tanh"), ReGLU ("relu").

    Args:   up: None if `gate` holds both as the halves of its last dimension, gate first; activation: a key of ACTIVATIONS.
    Raises: ValueError for another, and for a row that has no halves.
    """
    if up is None and gate.shape[-1] % 2:
        raise ValueError(f"rows of {gate.shape[-1]} numbers; without `up` a row is gate and up, two halves: give an even number, or both tensors")
    pieces_of = vector(gate.shape[-1] // (2 if up is None else 1), gate)
    k = pick("gated", "activation.cu", gate, up, limit=obstacle(activation, gate, up), ACTIVATION=activation, VECTOR=pieces_of)
    if k is None:
        return gated_reference(gate, up, activation)
    check_shapes("gated", up=(up, gate.shape))
    return Gated.apply(k, pieces_of, whole(gate), None if up is None else whole(up))
