"""The feed-forward half of a block: up, bend, down."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, silu

from ..config import ModelConfig
from ..ops.linear import Linear

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "gelu_tanh": partial(gelu, approximate="tanh"), "relu": relu, "silu": silu}


class FeedForward(nn.Module):
    """y = down(activation(up(x))), each position on its own."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.up_proj = Linear(c.d_model, c.d_ff)
        self.down_proj = Linear(c.d_ff, c.d_model)
        self.activation = ACTIVATIONS[c.activation]

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return self.down_proj(self.activation(self.up_proj(x)))
