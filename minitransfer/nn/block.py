"""One block for every family.

    post-norm (BERT)                      pre-norm (GPT-2)

    x ──► attention ──► + ──► norm ──►    x ──► norm ──► attention ──► + ──►
    └───────────────────┘                 └────────────────────────────┘
    x ──► mlp ────────► + ──► norm ──►    x ──► norm ──► mlp ────────► + ──►
    └───────────────────┘                 └────────────────────────────┘

    parallel (GPT-NeoX): x + attention(norm(x)) + mlp(norm'(x))
    a decoder beside an encoder (T5, BART): cross-attention to what the encoder has read is a third part, between the two
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops.dispatch import device_of
from ..ops.dropout import Dropout
from .attention import Attention, CrossAttention, Memory
from .cache import LayerCache
from .convolution import NeighbourConvolution
from .disentangled import DisentangledAttention, Distances
from .feedforward import FeedForward
from .masks import Mask
from .norms import make_norm
from .positions import Rotation
from .recompute import again_in_backward
from .trace import heard

Seen = tuple[Tensor | None, ...]    # probabilities and scores of the attention, and probabilities of the cross-attention, when asked for
Left = tuple[Tensor, float]         # what a part has made and the stream does not hold yet, and the rate of dropout on it


class Block(nn.Module):
    """Attention mixes positions, the feed-forward part works on each; both are added to the stream x."""

    def __init__(self, c: ModelConfig, number: int = 0):
        super().__init__()
        self.attn: Attention = Attention(c) if c.disentangled is None else DisentangledAttention(c)
        self.mlp = FeedForward(c)
        self.norm_attn = make_norm(c) if number or c.first_norm else nn.Identity()
        self.cross_attn = CrossAttention(c) if c.cross_attention else None
        self.norm_cross = make_norm(c) if c.cross_attention else None
        self.norm_mlp = make_norm(c)
        self.near = NeighbourConvolution(c, c.convolution) if c.convolution is not None and number == 0 else None
        self.dropout = Dropout(c.dropout)
        self.pre_norm, self.parallel = c.norm_position == "pre", c.parallel

    def forward(self, x: Float[Tensor, "B T D"], mask: Mask, cache: LayerCache | None = None, show: bool = False, turn: Rotation | None = None,
                relative: Tensor | Distances | None = None, memory: Memory | None = None, again: str = "", left: Left | None = None,
                leaves: bool = False) -> tuple[Any, Seen]:
        """The stream, and what was seen; turn, relative: what attention knows of positions beyond the mask (see Attention); memory: what cross-attention looks at;
        again: the part, "attention" or "mlp", that the backward pass computes again; left: what the block before has left to be added; leaves: this one does
        the same, for a kernel that adds and norms in one pass, and gives (stream, left) in the place of the stream."""
        read = x
        if left is not None:
            read, x = self.norm_attn(left[0], x, left[1])
        elif self.pre_norm:
            read = self.norm_attn(x)
        mixed, *seen = again_in_backward(again == "attention", self.attn, read, mask, cache, show, turn, relative)
        if self.parallel:
            return x + self.dropout(mixed) + self.dropout(again_in_backward(again == "mlp", self.mlp, self.norm_mlp(x))), tuple(seen)
        given, (read, x) = x, self.add(mixed, x, self.norm_attn, self.norm_cross or self.norm_mlp)
        if self.cross_attn is not None and memory is not None:
            crossed, probs, _ = self.cross_attn(read, memory, cache, show)
            read, x = self.add(crossed, x, self.norm_cross, self.norm_mlp)
            seen = [*seen, probs]
        more = again_in_backward(again == "mlp", self.mlp, read)
        if leaves:
            return (x, (more, self.rate)), tuple(seen)
        if self.pre_norm:
            return x + self.dropout(more), tuple(seen)
        _, x = self.add(more, x, self.norm_mlp, None)
        return x if self.near is None else self.near(given, x, mask), tuple(seen)

    @property
    def rate(self) -> float:
        return self.dropout.rate if self.training else 0.0

    def add(self, made: Float[Tensor, "B T D"], x: Float[Tensor, "B T D"], own: Any, following: Any) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T D"]]:
        """What the next part reads, and the stream: pre-norm, the next part's norm of the sum, and the sum; post-norm, this part's norm of the sum, twice.

        Under autocast the stream stays float32; what only products read may be rounded as they would.
        """
        y, total = (following if self.pre_norm else own)(made, x, self.rate, wide=not self.pre_norm)
        return y, total if self.pre_norm else y


def sums_are_left(blocks: Iterable[Any], norm: nn.Module | None, x: Float[Tensor, "B T D"]) -> bool:
    """Whether each block leaves its last sum to the next one's norm, whose kernel adds in the same pass: not where a hook would hear the difference."""
    plain = all(block.pre_norm and not block.parallel and not heard(block, block.norm_attn) for block in blocks)
    return device_of(x) == "cuda" and norm is not None and plain and not heard(norm)
