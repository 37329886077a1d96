"""Matrix-vector products with weights packed once for the CPU: what one-row text generation is bound by.

    y = x W^T + b,  with W stored in the order in which the CPU's kernel reads it

A product with one row reads every weight once, so its time is bytes / bandwidth; packing raises the bandwidth reached, 16-bit weights halve the bytes.
The packing is oneDNN's, through PyTorch's own operators. Inference only.
"""
from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear


def available(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this build of PyTorch has oneDNN's products, the CPU can do them in `dtype`, and `torch.backends.mkldnn.flags` does not switch them off."""
    needed = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    there = torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in needed)
    able = dtype == torch.float32 or (there and dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return there and able and bool(torch.backends.mkldnn.enabled)


def reference(x: Float[Tensor, "*N D"], weight: Float[Tensor, "F D"], bias: Float[Tensor, "F"] | None) -> Float[Tensor, "*N F"]:
    """The same product with the weights as they are."""
    return linear(x, weight, bias)


def cost(N: int, F: int, D: int, bytes_per_number: int = 4) -> dict[str, int]:
    """flop = 2 N F D; bytes = F D numbers of weights (what counts while N is small) + N (F + D) of activations."""
    return {"flop": 2 * N * F * D, "bytes": bytes_per_number * F * D + 4 * N * (F + D)}


class PackedLinear(nn.Module):
    """A Linear for inference with a packed copy of its weight, in `dtype`; the input and the output keep the dtype of x."""

    def __init__(self, weight: Float[Tensor, "F D"], bias: Float[Tensor, "F"] | None, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), 1)
        self.bias = None if bias is None else bias.detach().to(dtype)

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N F"]:
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.bias, "none", [], "").to(x.dtype)
