"""Muon: matrices move along the nearest (semi-)orthogonal matrix of their momentum, everything else by AdamW.

    m <- m + (1 - mu) (g - m)            u = g + mu (m - g)                                             (Nesterov)
    X = u / |u|, then five times:        A = X X^T,  X <- a X + (b A + c A A) X                         (Newton-Schulz; (a, b, c) = (3.4445, -4.7750, 2.0315))
    w <- w (1 - lr * decay) - lr sqrt(max(1, rows / columns)) X

The singular values of X end between about 0.7 and 1.2 and not at 1: that is as good, and takes fewer steps. Matrices of one shape go through together.
Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; he keeps embeddings and the output matrix with AdamW.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .adamw import AdamW

COEFFICIENTS, ROUNDS, SMALLEST = (3.4445, -4.7750, 2.0315), 5, 1e-7


def newton_schulz(u: Float[Tensor, "N rows columns"], dtype: torch.dtype = torch.bfloat16) -> Float[Tensor, "N rows columns"]:
    """Of each matrix about U V^T, where u = U S V^T; computed in `dtype`, the smaller side first."""
    a, b, c = COEFFICIENTS
    tall = u.shape[-2] > u.shape[-1]
    x = u.to(dtype).mT if tall else u.to(dtype)
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=SMALLEST)
    for _ in range(ROUNDS):
        square = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def cost(N: int, rows: int, columns: int) -> dict[str, int]:
    """FLOP of the products for N matrices: two of the smaller side's square with the matrix, and one of squares, in each round."""
    small, large = sorted((rows, columns))
    return {"flop": N * ROUNDS * (4 * small * small * large + 2 * small**3)}


class Muon(AdamW):
    """AdamW for groups without `muon`, Muon for those with `"muon": True`, whose state is torch.optim.Muon's `momentum_buffer`.

        Muon([{"params": matrices, "muon": True, "lr": 0.02}, {"params": others, "lr": 3e-4}])

    Rates and found_inf may be on the device: nothing waits, and a step can be captured.

    Args:   params: groups, or matrices alone; momentum: mu; dtype: of the products, bfloat16 as published.
    Raises: ValueError for a parameter that is no matrix in a group of Muon.
    """

    def __init__(self, params: Iterable, lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2,
                 momentum: float = 0.95, dtype: torch.dtype = torch.bfloat16):
        self.momentum, self.dtype, groups = momentum, dtype, list(params)
        super().__init__([{"params": groups, "muon": True}] if groups and not isinstance(groups[0], dict) else groups, lr, betas, eps, weight_decay)

    def add_param_group(self, param_group: dict) -> None:
        super().add_param_group({"muon": False, "momentum": self.momentum} | param_group)
        for p in self.param_groups[-1]["params"] if self.param_groups[-1]["muon"] else []:
            if p.dim() != 2:
                raise ValueError(f"a parameter of shape {tuple(p.shape)} in a group of Muon; it steps matrices: put others into a group of their own, which AdamW steps")

    def __setstate__(self, state: dict) -> None:
        torch.optim.Optimizer.__setstate__(self, state)                          # Adam's asks the state of every parameter for its `step`

    def stepped(self, group: dict) -> list[nn.Parameter]:
        return [] if group["muon"] else super().stepped(group)

    @torch.no_grad()
    def step(self, closure: Callable | None = None, *, factor: Float[Tensor, ""] | None = None):
        loss = super().step(closure, factor=factor)
        for group in self.param_groups:
            shapes: dict[tuple, list[nn.Parameter]] = {}
            for p in group["params"]:
                if group["muon"] and p.grad is not None:
                    shapes.setdefault((p.shape, p.dtype, p.device), []).append(p)
            for some in shapes.values():
                self.move(some, group, factor)
        return loss

    def move(self, some: list[nn.Parameter], group: dict, factor: Tensor | None) -> None:
        """Step matrices of one shape."""
        weights, (rows, columns) = [self.wide(p) for p in some], some[0].shape
        for p, w in zip(some, weights, strict=True):
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(w)
        buffers, lr, mu = [self.state[p]["momentum_buffer"] for p in some], group["lr"], group["momentum"]
        m, g = torch.stack(buffers), torch.stack([p.grad for p in some if p.grad is not None]).to(weights[0].dtype)
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        g = g if factor is None else g * factor
        g = g if scale is None else g / scale
        moved = m.lerp(g, 1 - mu)
        change = newton_schulz(g.lerp(moved, mu), self.dtype).to(m.dtype) * (lr * max(1.0, rows / columns)**0.5)
        keep = 1 - lr * group["weight_decay"]
        if found_inf is not None:
            overflowed = found_inf.squeeze() != 0
            moved, change, keep = torch.where(overflowed, m, moved), torch.where(overflowed, 0.0, change), torch.where(overflowed, 1.0, keep)
        torch._foreach_copy_(buffers, moved.unbind())
        torch._foreach_mul_(weights, keep)
        torch._foreach_sub_(weights, change.unbind())
        if weights[0] is not some[0]:
            torch._foreach_copy_(list[Tensor](some), weights)
