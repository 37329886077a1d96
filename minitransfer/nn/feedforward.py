"""The feed-forward half of a block: up, bend, down."""
from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops.activation import ACTIVATIONS, bias_gelu, gated, obstacle
from ..ops.dispatch import within_reach
from ..ops.dropout import Dropout
from ..ops.linear import Linear, linear
from .trace import heard


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
        bias = self.up_proj.bias if self.leaves_bias(x) else None
        up = self.up_proj(x) if bias is None else linear(x, self.up_proj.weight)
        gate = None if self.gate_proj is None else self.gate_proj(x)
        if not self.wide or up.dtype != torch.float16:
            return self.down_proj(self.bent(up, gate, bias))
        with torch.autocast(x.device.type, enabled=False):                       # products and sums of thousands of numbers outgrow float16
            inner = self.bent(up.float(), None if gate is None else gate.float(), bias)
            return self.down_proj(inner.to(self.down_proj.weight.dtype))

    def leaves_bias(self, x: Float[Tensor, "B T D"]) -> bool:
        """Whether the bias of up_proj is left to a kernel that adds it and bends in one pass; where there is none, a product adds it for nothing."""
        def limit() -> str:
            plain = type(self.up_proj) is Linear and self.up_proj.bias is not None and not heard(self.up_proj)
            return obstacle(self.activation, x) if plain else "no bias, an adapter or a hook at up_proj"
        return self.gate_proj is None and within_reach("bias_gelu", x, limit)

    def bent(self, up: Float[Tensor, "B T F"], gate: Float[Tensor, "B T F"] | None, bias: Float[Tensor, "F"] | None) -> Float[Tensor, "B T F"]:
        if gate is not None:
            return self.dropout(gated(gate, up, self.activation))
        return self.dropout(ACTIVATIONS[self.activation](up) if bias is None else bias_gelu(up, bias, self.activation))
