"""The affine map, through oneDNN where that is faster: float32 on a CPU.

    y = x W^T + b        dx = dy W        dW = dy^T x        db = sum_n dy_n

PyTorch multiplies float32 matrices on a CPU with its BLAS; oneDNN takes 4-10 % less time for y and dx (`minitransfer bench cpu` shows it whole).
Every other dtype and device, and numbers under autocast, take PyTorch's own.
"""
from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear as torch_linear

from .dispatch import device_of
from .packed_linear import available
from .quantized_weight import QuantizedWeight


def reference(x: Float[Tensor, "*N D"], weight: Float[Tensor, "F D"], bias: Float[Tensor, "F"] | None) -> Float[Tensor, "*N F"]:
    """PyTorch's product."""
    return torch_linear(x, weight, bias)


def cost(N: int, F: int, D: int, bytes_per_number: int = 4) -> dict[str, int]:
    """flop = 2 N F D forward, twice that backward; bytes of a forward pass: x, W and y once."""
    return {"flop_forward": 2 * N * F * D, "flop_backward": 4 * N * F * D, "bytes": bytes_per_number * (N * D + F * D + N * F)}


def suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """oneDNN is asked for float32 on a CPU; one row of x is a matter of memory, and left to the BLAS."""
    plain = device_of(x) == "cpu" and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    fits = x.shape[-1] == weight.shape[1]                                        # if not, PyTorch's own product says so
    return plain and fits and x.numel() > x.shape[-1] and available()


def product(x: Float[Tensor, "*N D"], weight: Float[Tensor, "F D"], bias: Float[Tensor, "F"] | None) -> Float[Tensor, "*N F"]:
    """x W^T + b without a gradient. Any strides of W are read as they are."""
    if suits_onednn(x, weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return torch_linear(x, weight, bias)


class OneDNNLinear(torch.autograd.Function):
    """The formulas of the module's docstring. The backward pass is made of differentiable steps: second derivatives come with it."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx, dy: Tensor):
        (x, weight), (wants_x, wants_w, wants_b) = ctx.saved_tensors, ctx.needs_input_grad
        rows = dy.flatten(0, -2)
        return (linear(dy, weight.t(), None) if wants_x else None,
                rows.t() @ x.flatten(0, -2) if wants_w else None,
                rows.sum(0) if wants_b else None)


class QuantizedLinear(torch.autograd.Function):
    """The formulas of the module's docstring without dW, for a W that is held as codes: what autograd keeps is the codes, and W is made again in either direction."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return product(x, weight.dequantised(), bias)

    @staticmethod
    def backward(ctx, dy: Tensor):
        return (linear(dy, ctx.weight.dequantised().to(dy.dtype).t(), None) if ctx.needs_input_grad[0] else None, None,
                dy.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None)


def linear(x: Float[Tensor, "*N D"], weight: Float[Tensor, "F D"], bias: Float[Tensor, "F"] | None = None) -> Float[Tensor, "*N F"]:
    """y = x W^T + b, differentiable.

    Errors: those of torch.nn.functional.linear, for shapes that do not fit.
    """
    if isinstance(weight, QuantizedWeight):
        return QuantizedLinear.apply(x, weight, bias)
    return OneDNNLinear.apply(x, weight, bias) if suits_onednn(x, weight) else torch_linear(x, weight, bias)


class Linear(nn.Linear):
    """nn.Linear that multiplies by `linear`: the same parameters, the same names."""

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N F"]:
        return linear(x, self.weight, self.bias)
