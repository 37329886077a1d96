"""Output matrix and cross-entropy in one: the logits of all tokens are never held at once.

    logits = x W^T + b            loss = sum_n (logsumexp(logits_n) - logits_n[target_n])

    dlogits = softmax(logits) - onehot(target)      dx = dlogits W      dW = dlogits^T x      db = sum_n dlogits_n

The gradients are linear in the incoming scalar, so a chunk's are made while its logits exist and only scaled in backward.
With V in the tens of thousands the logits are the largest tensor of a training step; here they live one chunk at a time.
On a GPU a chunk's logits become its gradient in their own place, in the dtype of the product, and V is filled up to a multiple of TILE: rows of 50,257
16-bit numbers begin anywhere, and cuBLAS has only its unaligned kernels for their products. Kernel: kernels/cross_entropy.cu.
Source: the idea of gradients in the forward pass is Hsu et al. 2024 (Liger Kernel), section 3.2.
"""
from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.amp.autocast_mode import is_autocast_available
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear

from .dispatch import device_of, pick
from .kernels import Kernels
from .linear import product

CHUNK = 1024                    # rows whose logits exist at a time, on a CPU
LOGITS = 2**29                  # bytes of them on a GPU, where each chunk reads and writes all of dW: 5120 rows of GPT-2's take 7 passes over 32,768 rows, not 32
TILE = 64                       # what a GPU's columns of logits are a multiple of


def reference(x: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], bias: Float[Tensor, "V"] | None, targets: Int[Tensor, "N"]) -> Float[Tensor, ""]:
    """The same number with all logits at once."""
    logits = linear(x, weight, bias)
    return cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), targets.clamp(min=-1), reduction="sum", ignore_index=-1)


def cost(N: int, V: int, D: int, chunk: int, bytes_per_number: int = 4) -> dict[str, int]:
    """flop = 6 N V D for both directions; bytes held for logits = chunk V numbers instead of N V."""
    return {"flop": 6 * N * V * D, "bytes_logits": min(chunk, N) * V * bytes_per_number, "bytes_logits_reference": N * V * bytes_per_number}


def autocast_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    return torch.get_autocast_dtype(device) if is_autocast_available(device) and torch.is_autocast_enabled(device) else x.dtype


def without_autocast(device: str) -> AbstractContextManager:
    return torch.autocast(device, enabled=False) if is_autocast_available(device) else nullcontext()


def rows_in_torch(logits: Float[Tensor, "N V"], targets: Int[Tensor, "N"]) -> tuple[Float[Tensor, "N"], Float[Tensor, "N V"]]:
    """The loss of each row and its dlogits, in float32 or wider; a row with a negative target has neither."""
    logits, none, goal = logits.to(torch.promote_types(logits.dtype, torch.float32)), targets < 0, targets.clamp(min=0)[:, None]
    right, top = logits.gather(1, goal), logits.amax(-1, keepdim=True)                        # (N, 1)
    dlogits = logits.softmax(-1)
    losses = (top - dlogits.amax(-1, keepdim=True).log() - right)[:, 0].masked_fill(none, 0)  # logsumexp = top - log p(top), and p(top) >= 1 / V
    dlogits.scatter_add_(1, goal, torch.full_like(right, -1.0))
    if none.device.type != "cpu" or bool(none.any()):                                         # asking a GPU would make the host wait
        dlogits.masked_fill_(none[:, None], 0)
    return losses, dlogits


def rows_in_kernel(k: Kernels, logits: Float[Tensor, "N P"], targets: Int[Tensor, "N"], V: int, wanted: bool) -> tuple[Float[Tensor, "N"], Float[Tensor, "N P"]]:
    """The same in one kernel, dlogits in the place of the logits; not `wanted`: the logits stay. Rows are multiples of 16 bytes, P >= V: the rest counts for nothing."""
    (N, P), losses = logits.shape, torch.empty(len(logits), device=logits.device)
    threads = min(512, -(-P * logits.element_size() // 2048) * 32)                            # each takes four pieces of 16 bytes at a time
    k("cross_entropy", (N, 1, 1), (threads, 1, 1), logits, losses, targets.contiguous(), V, P, int(wanted))
    return losses, logits


def up_to_tile(V: int) -> int:
    return -(-V // TILE) * TILE


def filled_up(t: Float[Tensor, "V *D"], rows: int, dtype: torch.dtype) -> Float[Tensor, "P *D"]:
    """The tensor in a dtype, and zeros after it until there are so many rows."""
    if len(t) == rows:
        return t.to(dtype)
    out = t.new_empty(rows, *t.shape[1:], dtype=dtype)
    out[: len(t)], out[len(t) :] = t, 0
    return out


class LinearCrossEntropy(torch.autograd.Function):
    """The formulas of the module's docstring, a chunk of tokens at a time."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk: int | None) -> Tensor:
        dtype, wide = autocast_dtype(x), torch.promote_types(x.dtype, torch.float32)
        wants_x, wants_w, wants_b = ctx.needs_input_grad[:3]
        wanted = wants_x or wants_w or wants_b
        V, loss = len(weight), x.new_zeros((), dtype=wide)
        dx = torch.empty_like(x) if wants_x else None
        dw: Tensor | None = None
        db = torch.zeros_like(bias) if bias is not None and wants_b else None
        with without_autocast(x.device.type):
            k = pick("linear_cross_entropy", "cross_entropy.cu", x.new_empty(0, dtype=dtype), weight, targets)
            P = V if k is None else up_to_tile(V)
            w, b = filled_up(weight, P, dtype), None if bias is None else filled_up(bias, P, dtype)
            chunk = chunk or (CHUNK if k is None else max(CHUNK, LOGITS // (P * w.element_size()) // CHUNK * CHUNK))
            for start in range(0, len(x), chunk):
                part, goal = x[start : start + chunk].to(dtype), targets[start : start + chunk]
                logits = dlogits = None                                                           # their memory is that of the next
                logits = product(part, w, b)                                                      # (chunk, P)
                losses, dlogits = rows_in_torch(logits, goal) if k is None else rows_in_kernel(k, logits, goal, V, wanted)
                loss += losses.sum()
                if not wanted:
                    continue
                if db is not None:
                    db += dlogits.sum(0, dtype=wide)[:V].to(db.dtype)
                dlogits = dlogits.to(dtype)
                if dx is not None:
                    dx[start : start + chunk] = (dlogits @ w).to(dx.dtype)
                if wants_w:
                    dw = (dlogits.T @ part).to(weight.dtype) if dw is None else dw.add_(dlogits.T @ part)
        if wants_w and dw is None:
            dw = torch.zeros_like(weight)                                                         # no rows at all
        ctx.gradients = dx, None if dw is None else dw[:V], db
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss: Tensor):
        if ctx.gradients is None:
            raise RuntimeError("this loss was already used in backward(): its gradients were handed on, run forward again")
        gradients, ctx.gradients = ctx.gradients, None      # handed on, not copied: dW is as large as the output matrix
        if device_of(dloss) == "cpu" and dloss == 1:       # asking a GPU would make the host wait
            return *gradients, None, None
        return *(None if g is None else g * dloss for g in gradients), None, None     # dloss is 0-d: g keeps its dtype, dloss its digits


def linear_cross_entropy(x: Float[Tensor, "N D"], weight: Float[Tensor, "V D"], bias: Float[Tensor, "V"] | None, targets: Int[Tensor, "N"],
                         chunk: int | None = None) -> Float[Tensor, ""]:
    """Sum over the rows of x of the cross-entropy between x W^T + b and its target.

    Args:    targets: below V; a row with a negative one (-100) counts for nothing. chunk: rows whose logits exist at a time (default: CHUNK; on a GPU
             as many as LOGITS bytes hold).
    Returns: the sum, in float32 or wider. Under autocast the products run in its dtype.
    Raises:  ValueError if chunk < 1, and on a CPU for a target that is not below V. Second derivatives are not available.
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk}; a chunk holds at least one row: give 1 or more")
    if device_of(targets) == "cpu" and not bool((targets < len(weight)).all()):                      # asking a GPU would make the host wait
        raise ValueError(f"a target of {int(targets.max())} with {len(weight)} rows in the output matrix; a target is one of its rows: give numbers below {len(weight)}, or -100 "
                         "for a row without one")
    if not torch.is_grad_enabled():     # else the gradients would be made for nobody: needs_input_grad does not know of no_grad
        x, weight, bias = x.detach(), weight.detach(), None if bias is None else bias.detach()
    return LinearCrossEntropy.apply(x, weight, bias, targets, chunk)
