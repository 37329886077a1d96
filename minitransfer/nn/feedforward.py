"""The feed-forward half of a block: up, bend, down."""
from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops.activation import ACTIVATIONS, gated
from ..ops.dropout import Dropout
from ..ops.linear import Linear


class FeedForward(nn.Module):
    """y = down(activation(up(x))), or gated, y = down(activation(gate(x)) * up(x)); each position on its own.

    Source: Vaswani et al. 2017, section 3.3; Shazeer 2020, equation 6 (gated).
    """

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.up_proj = Linear(c.d_model, c.d_ff, bias=c.mlp_bias)
        self.gate_proj = Linear(c.d_model, c.d_ff, bias=c.mlp_bias) if c.gated else None
        self.down_proj = Linear(c.d_ff, c.d_model, bias=c.mlp_bias)
        self.activation, self.wide = c.activation, c.wide_stream
        self.dropout = Dropout(c.mlp_dropout)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        up, gate = self.up_proj(x), None if self.gate_proj is None else self.gate_proj(x)
        if not self.wide or up.dtype != torch.float16:
            return self.down_proj(self.bent(up, gate))
        with torch.autocast(x.device.type, enabled=False):                       # products and sums of thousands of numbers outgrow float16
            inner = self.bent(up.float(), None if gate is None else gate.float())
            return self.down_proj(inner.to(self.down_proj.weight.dtype))

    def bent(self, up: Float[Tensor, "B T F"], gate: Float[Tensor, "B T F"] | None) -> Float[Tensor, "B T F"]:
        return self.dropout(ACTIVATIONS[self.activation](up) if gate is None else gated(gate, up, self.activation))
