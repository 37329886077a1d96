"""One block for every family.

    post-norm (BERT)                      pre-norm (GPT-2)

    x ──► attention ──► + ──► norm ──►    x ──► norm ──► attention ──► + ──►
    └───────────────────┘                 └────────────────────────────┘
    x ──► mlp ────────► + ──► norm ──►    x ──► norm ──► mlp ────────► + ──►
    └───────────────────┘                 └────────────────────────────┘
"""
from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops.dropout import Dropout
from .attention import Attention
from .cache import LayerCache
from .feedforward import FeedForward
from .masks import Mask

Seen = tuple[Tensor | None, Tensor | None]      # probabilities and scores of the attention, when asked for


class Block(nn.Module):
    """Attention mixes positions, the feed-forward part works on each; both are added to the stream x."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        self.attn, self.mlp = Attention(c), FeedForward(c)
        self.norm_attn, self.norm_mlp = (nn.LayerNorm(c.d_model, c.norm_eps) for _ in range(2))
        self.dropout = Dropout(c.dropout)
        self.pre_norm = c.norm_position == "pre"

    def forward(self, x: Float[Tensor, "B T D"], mask: Mask, cache: LayerCache | None = None, show: bool = False) -> tuple[Float[Tensor, "B T D"], Seen]:
        if self.pre_norm:
            mixed, *seen = self.attn(self.norm_attn(x), mask, cache, show)
            x = x + self.dropout(mixed)
            return x + self.dropout(self.mlp(self.norm_mlp(x))), tuple(seen)
        mixed, *seen = self.attn(x, mask, cache, show)
        x = self.norm_attn(x + self.dropout(mixed))
        return self.norm_mlp(x + self.dropout(self.mlp(x))), tuple(seen)
