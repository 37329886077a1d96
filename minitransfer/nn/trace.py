"""What a forward pass leaves behind on its way, if it is asked to."""
from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass
class Trace:
    """What the body leaves behind on its way, if asked; `attention` asks for probabilities and scores too."""

    attention: bool
    states: list[Tensor] = field(default_factory=list)
    probs: list[Tensor] = field(default_factory=list)
    scores: list[Tensor] = field(default_factory=list)
    crossed: list[Tensor] = field(default_factory=list)      # probabilities of the cross-attention


def heard(*modules: nn.Module | None) -> bool:
    """Whether a hook listens at one of these modules: then it is to be called as it is, and what it gave is not to be overwritten."""
    return any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks for module in modules if module is not None)
