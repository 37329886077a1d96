"""What models that give one vector a text may have beside pooling: layers after it, and words written before a text."""
from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from ..ops.activation import ACTIVATIONS
from ..ops.linear import Linear


class Projection(nn.Module):
    """f(x W^T + b): a layer between the pooling and the length, to another width; `activation`: None for the identity."""

    def __init__(self, inputs: int, outputs: int, bias: bool, activation: str | None):
        super().__init__()
        self.linear, self.activation = Linear(inputs, outputs, bias=bias), activation

    def forward(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B P"]:
        x = self.linear(x)
        return x if self.activation is None else ACTIVATIONS[self.activation](x)


class Prompts(dict[str, str]):
    """Kind of text -> the words written before it, {"query": "query: "}; `default`: the kind of a text of which none is said."""

    default: str | None = None

    def before(self, kind: str | None) -> str:
        """The words before texts of this kind; "" is no kind. Raises: ValueError for one that has none."""
        kind = self.default if kind is None else kind
        if kind and kind not in self:
            raise ValueError(f'prompt={kind!r}; this model has {", ".join(map(repr, self)) or "no prompts"}: give one of these, or say what it is, '
                             f'model.head.prompts[{kind!r}] = "..."')
        return self[kind] if kind else ""
