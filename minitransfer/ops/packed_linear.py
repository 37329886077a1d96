"""Matrix-vector products with weights packed once for the CPU: what one-row text generation is bound by.

    y = x W^T + b,  with W stored in the order in which the CPU's kernel reads it

A product with one row reads every weight once, so its time is bytes / bandwidth; packing raises the bandwidth reached, 16-bit weights halve the bytes,
8-bit weights quarter them. The packing is oneDNN's, or for 8 bits that of PyTorch's quantised engine, through PyTorch's own operators. Inference only.

    8 bits:  y = s_x (X - z) Q^T s_W + b        Q, s_W: ops/int8.py, by row        X = round(x / s_x) + z in [0, 255], one s_x and z for all of x

Without VNNI a CPU adds two products of bytes in 16 bits, and cuts what does not fit. So codes stay within +-64, whatever the CPU: 2 * 255 * 64 = 32,640 < 2^15.
(The usual way out, inputs of 7 bits, costs more: an input has one scale for all of it, a weight one for each row.)
"""
from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from .int8 import quantise

TOP = 64                                                            # the largest code of a weight
ENGINES = ("x86", "fbgemm", "onednn")                               # PyTorch's quantised engines that take a scale for each row of a Linear


def available(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this build of PyTorch has packed products in `dtype`, the CPU can do them, and `torch.backends.mkldnn.flags` does not switch them off."""
    if dtype == torch.int8:
        return torch.backends.quantized.engine in ENGINES
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


def packed_codes(weight: Float[Tensor, "F D"], bias: Float[Tensor, "F"] | None) -> torch.ScriptObject:
    """The codes, scales and bias in the order of the quantised engine."""
    codes, scale = quantise(weight, TOP)
    with warnings.catch_warnings():                                              # making a tensor of this type is deprecated, the product is not
        warnings.simplefilter("ignore", UserWarning)
        made = torch._make_per_channel_quantized_tensor(codes, scale[:, 0].double(), torch.zeros(len(codes), dtype=torch.long), 0)
    return torch.ops.quantized.linear_prepack(made, None if bias is None else bias.detach().float())


class PackedLinear(nn.Module):
    """A Linear for inference with a packed copy of its weight, in `dtype`: float32, bfloat16 or int8; the input and the output keep the dtype of x."""

    def __init__(self, weight: Float[Tensor, "F D"], bias: Float[Tensor, "F"] | None, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        if dtype == torch.int8:
            self.packed = packed_codes(weight, bias)
            return
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), 1)
        self.bias = None if bias is None else bias.detach().to(dtype)

    @torch.no_grad()
    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N F"]:
        if self.dtype == torch.int8:
            return torch.ops.quantized.linear_dynamic(x.float(), self.packed, False).to(x.dtype)
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.bias, "none", [], "").to(x.dtype)
