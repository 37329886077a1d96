"""The Linear of Compacter: its matrix is a sum of Kronecker products, one small factor shared by all such layers, the other of low rank.

    y = x W^T + b        W = sum_i A_i (x) (S_i T_i)        i = 1 .. n
    A: (n, n, n), shared    S: (n, out / n, r)    T: (n, r, in / n)        r (in + out) + out parameters, and n^3 once

W is put together at every step: n in out multiplications, less than one for each token of a batch.
Source: Mahabadi et al. 2021, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers".
"""
from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ops.linear import linear


class PHMLinear(nn.Module):
    """y = x W^T + b, W from `rule` (A), `left` (S) and `right` (T); all zeros, the caller fills them."""

    def __init__(self, in_features: int, out_features: int, rule: nn.Parameter, rank: int):
        super().__init__()
        n, device = len(rule), rule.device
        self.in_features, self.out_features, self.rule = in_features, out_features, rule
        self.left = nn.Parameter(torch.zeros(n, out_features // n, rank, device=device))
        self.right = nn.Parameter(torch.zeros(n, rank, in_features // n, device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device))

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        return torch.einsum("npq,nab->paqb", self.rule, self.left @ self.right).reshape(self.out_features, self.in_features)

    def forward(self, x: Float[Tensor, "*N in"]) -> Float[Tensor, "*N out"]:
        return linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, n={len(self.rule)}, rank={self.right.shape[1]}"
