"""Bottleneck adapters: a small network behind a frozen projection, added to its output.

    y = x W^T + b        y <- y + up(f(down(y)))        down: D -> m, random;  up: m -> D, zeros;  2 m D + m + D parameters

Placement: "houlsby" puts one behind the attention's output projection and one behind the feed-forward's, "pfeiffer" the second alone.
Source: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", section 2.1; Pfeiffer et al. 2021, "AdapterFusion", section 3.
Differs from Houlsby: norms stay frozen, `up` starts at zero and not near it. Differs from the `adapters` library: there Pfeiffer's adapter reads
the sum after its norm; here both read the projection's output, so that one module serves pre-norm and post-norm.

A model may carry several, each under a name; one of them answers at a time, and trains.
"""
from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..config import choose
from ..nn.feedforward import ACTIVATIONS
from ..nn.model import Model
from ..ops.linear import Linear
from .groups import TrainableReport
from .lora import match_targets
from .named import DEFAULT, NamedLinear, adapter_list, check_name, check_unmerged, set_adapter, wrap
from .wrapped import check_free, wrapped_linears

PLACEMENTS = {"houlsby": "o,down", "pfeiffer": "down"}


class Bottleneck(nn.Module):
    """up(f(down(y))), zero until `up` has been trained."""

    def __init__(self, width: int, size: int, activation: str, device: torch.device):
        super().__init__()
        self.down, self.up = Linear(width, size, device=device), Linear(size, width, device=device)
        self.activation = ACTIVATIONS[activation]

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """down uniform in +-1/sqrt(D); everything else zero."""
        bound = 1 / math.sqrt(self.down.in_features)
        self.down.weight.copy_(torch.empty(self.down.weight.shape).uniform_(-bound, bound, generator=generator))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            zero.zero_()

    def forward(self, y: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        wide = torch.promote_types(y.dtype, torch.float32)                       # what it learned is kept in float32 on any body
        return self.up(self.activation(self.down(y.to(wide)))).to(y.dtype)


class AdaptedLinear(NamedLinear):
    """A Linear and the adapters behind it."""

    CALLED = "adapters"

    def __init__(self, base: nn.Linear):
        super().__init__(base)
        self.adapters = nn.ModuleDict()

    def change(self, name: str, x: Float[Tensor, "*N in"], y: Float[Tensor, "*N out"]) -> Float[Tensor, "*N out"]:
        return self.adapters[name](y)

    def parts(self, name: str) -> list[str]:
        return [f"adapters.{name}.{part}" for part, _ in self.adapters[name].named_parameters()]

    def drop(self, name: str) -> None:
        del self.adapters[name]

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, answering: {self.chosen}"


def adapted_layers(model: nn.Module) -> dict[str, AdaptedLinear]:
    """Name -> layer, for every Linear of the model with adapters behind it."""
    return wrapped_linears(model, AdaptedLinear)


def insert_adapter(model: Model, size: int, placement: str, activation: str, name: str) -> None:
    """Put a bottleneck called `name`, without values, at every place; none is chosen yet."""
    places = [one for group in match_targets(model, PLACEMENTS[placement]) for one in group]
    check_free(model, [one for one in places if one not in adapted_layers(model)])
    for one in places:
        layer = wrap(model, one, AdaptedLinear)
        layer.adapters[name] = Bottleneck(layer.out_features, size, activation, layer.weight.device).train(layer.training)


def add_adapter(model: Model, size: int = 64, placement: str = "houlsby", activation: str = "gelu", name: str = DEFAULT, seed: int = 0) -> TrainableReport:
    """Put an adapter into a loaded model, choose it, freeze everything but it and a task's head, and leave the base's outputs as they were, bit for bit.

    Args:    size: m, the width of the bottleneck. placement: "houlsby" or "pfeiffer". activation: one of `ModelConfig`'s. name: to choose it by;
             letters, digits, - and _. seed: draws `down`.
    Returns: the report of what trains now.
    Raises:  ValueError for a size below 1, a placement or activation that does not exist, a name that is taken or has other characters,
             or a projection that carries another change.
    """
    if size < 1:
        raise ValueError(f"size={size}; a bottleneck is 1 or more wide: 16 to 256 are usual")
    choose("placement", placement, tuple(PLACEMENTS))
    choose("activation", activation, tuple(ACTIVATIONS))
    check_name(name)
    if name in adapter_list(model):
        raise ValueError(f"an adapter named {name!r} is in this model already; there are {', '.join(adapter_list(model))}: give another name, or remove it")
    check_unmerged(model, "add")
    insert_adapter(model, size, placement, activation, name)
    generator = torch.Generator().manual_seed(seed)
    for bottleneck in bottlenecks(model, name).values():
        bottleneck.draw(generator)
    return set_adapter(model, name)


def bottlenecks(model: nn.Module, name: str) -> dict[str, Bottleneck]:
    """Where -> bottleneck, for all that belong to the adapter `name`."""
    return {at: layer.adapters[name] for at, layer in adapted_layers(model).items() if name in layer.adapters}     # type: ignore[misc]
