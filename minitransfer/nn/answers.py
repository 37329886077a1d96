"""What every head is made of: what the body says, what a loss is, and the layer that may stand in front of a last matrix."""
from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops.activation import ACTIVATIONS
from ..ops.linear import Linear
from .norms import make_norm

IGNORE = -100  # a label with this value is no target
LossAndCount = tuple[Tensor, int | Tensor]


@dataclass
class BodyOutput:
    """What every head may look at."""

    x: Float[Tensor, "B T D"]
    keep: Bool[Tensor, "B T"]                   # which positions are tokens
    pooled: Float[Tensor, "B D"] | None = None
    documents: Int[Tensor, "B T"] | None = None # which text of a packed row they belong to


def check_fit(labels: Tensor, n: int, what: str) -> None:
    """Labels index n outputs; a label outside is the user's mistake and is named before it indexes memory."""
    if labels.device.type == "cpu" and len(wrong := labels[(labels != IGNORE) & ((labels < 0) | (labels >= n))]):
        raise ValueError(f"a label {int(wrong[0])}; this head has {n} {what}, numbered 0 to {n - 1} ({IGNORE} marks no target): check the labels")


class Transform(nn.Module):
    """What may stand in front of a head's last matrix: activation(x W^T + b), then a norm."""

    def __init__(self, c: ModelConfig, width: int, activation: str, norm: bool):
        super().__init__()
        self.dense = Linear(c.d_model, width, bias=c.transform_bias)
        self.norm = make_norm(c, width) if norm else None
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N E"]:
        x = self.activation(self.dense(x))
        return x if self.norm is None else self.norm(x)


def classifier_transform(c: ModelConfig, *kinds: str) -> Transform | None:
    """What stands in front of the classifier, if the config's is one of `kinds`."""
    return Transform(c, c.d_model, c.classifier_activation, norm=c.classifier == "transform") if c.classifier in kinds else None
