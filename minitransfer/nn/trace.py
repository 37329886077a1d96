"""What a forward pass leaves behind on its way, if it is asked to."""
from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Trace:
    """What the body leaves behind on its way, if asked; `attention` asks for probabilities and scores too."""

    attention: bool
    states: list[Tensor] = field(default_factory=list)
    probs: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    crossed: list[Tensor] = field(default_factory=list)      # probabilities of the cross-attention
