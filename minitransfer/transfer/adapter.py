"""Bottleneck adapters: a small network behind a frozen projection, added to its output.

    y = x W^T + b        y <- y + up(f(down(y)))        down: D -> m, random;  up: m -> D, zeros;  2 m D + m + D parameters

Placement: "houlsby" puts one behind the attention's output projection and one behind the feed-forward's, "pfeiffer" the second alone.
Compacter is the same with `down` and `up` made of Kronecker products (`hypercomplex.py`): 2 r (m + D) + m + D parameters, and n^3 for all together.
Source: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", section 2.1; Pfeiffer et al. 2021, "AdapterFusion", section 3.
Differs from Houlsby: norms stay frozen, `up` starts at zero and not near it. Differs from the `adapters` library: there Pfeiffer's adapter reads
the sum after its norm; here both read the projection's output, so that one module serves pre-norm and post-norm.

A model may carry several, each under a name; one of them answers at a time, and trains.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..config import choose
from ..nn.model import Model
from ..ops.activation import ACTIVATIONS
from ..ops.linear import Linear
from .groups import TrainableReport
from .hypercomplex import PHMLinear
from .lora import match_targets
from .named import DEFAULT, NamedLinear, adapter_list, adapter_names, check_name, check_unmerged, set_adapter, wrap
from .wrapped import check_free, wrapped_linears

PLACEMENTS = {"houlsby": "o,down", "pfeiffer": "down"}


@dataclass(frozen=True)
class Design:
    """What an adapter is apart from its values, as `add_adapter` has it, and as its file does. Raises: ValueError for what describes no adapter."""

    size: int
    placement: str
    activation: str
    hypercomplex: int = 0
    rank: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size}; a bottleneck is 1 or more wide: 16 to 256 are usual")
        choose("placement", self.placement, tuple(PLACEMENTS))
        choose("activation", self.activation, tuple(ACTIVATIONS))
        if self.hypercomplex < 0 or self.rank < 1:
            raise ValueError(f"hypercomplex={self.hypercomplex}, rank={self.rank}; the first is a number of Kronecker products, the second their rank: "
                             "give 4 and 1 for Compacter, 0 and 1 for plain Linears")

    def build(self, model: Model, device: torch.device) -> dict[str, Bottleneck]:
        """Where -> bottleneck without values. Raises: ValueError for widths that n does not divide."""
        n = self.hypercomplex
        rule = nn.Parameter(torch.zeros(n, n, n, device=device))

        def layer(inputs: int, outputs: int) -> Linear | PHMLinear:
            return PHMLinear(inputs, outputs, rule, self.rank) if n else Linear(inputs, outputs, device=device)
        found = {}
        for at in (one for group in match_targets(model, PLACEMENTS[self.placement]) for one in group):
            width = model.get_parameter(at + ".weight").shape[0]
            if n and (width % n or self.size % n):
                raise ValueError(f"hypercomplex={n} for a bottleneck {width} -> {self.size}; a Kronecker product of {n} parts needs widths that {n} divides: "
                                 f"give a size and a number that do, 4 is usual")
            found[at] = Bottleneck(layer(width, self.size), layer(self.size, width), self)
        return found


class Bottleneck(nn.Module):
    """up(f(down(y))), zero until `up` has been trained."""

    def __init__(self, down: Linear | PHMLinear, up: Linear | PHMLinear, design: Design):
        super().__init__()
        self.down, self.up, self.design = down, up, design

    def forward(self, y: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        own = self.down.bias.dtype                                               # float32 on any body, unless the whole model was cast
        return self.up(ACTIVATIONS[self.design.activation](self.down(y.to(own)))).to(y.dtype)


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


def insert_adapter(model: Model, design: Design, name: str) -> None:
    """Put a bottleneck called `name`, without values, at every place; none is chosen yet."""
    built = design.build(model, model.device)
    check_free(model, [at for at in built if at not in adapted_layers(model)])
    for at, bottleneck in built.items():
        layer = wrap(model, at, AdaptedLinear)
        layer.adapters[name] = bottleneck.train(layer.training)


@torch.no_grad()
def draw(model: Model, name: str, generator: torch.Generator) -> None:
    """Zero what makes `up` zero, and the biases; everything else uniform in +-1/sqrt(d), d its last dimension, which is D for a plain `down`."""
    for parameter in adapter_names(model, name):
        p = model.get_parameter(parameter)
        bound = 0.0 if parameter.endswith((".bias", ".up.weight", ".up.left")) else 1 / math.sqrt(p.shape[-1])
        p.copy_(torch.empty(p.shape).uniform_(-bound, bound, generator=generator) if bound else torch.zeros(p.shape))


def add_adapter(model: Model, size: int = 64, placement: str = "houlsby", activation: str = "gelu", name: str = DEFAULT, seed: int = 0,
                hypercomplex: int = 0, rank: int = 1) -> TrainableReport:
    """Put an adapter into a loaded model, choose it, freeze everything but it and a task's head, and leave the base's outputs as they were, bit for bit.

    Args:    size: m, the width of the bottleneck. placement: "houlsby" or "pfeiffer". activation: one of `ModelConfig`'s. name: to choose it by;
             letters, digits, - and _. seed: draws `down`. hypercomplex: n of Compacter, and the rank of its factors; 0: plain Linears.
    Returns: the report of what trains now.
    Raises:  ValueError for a size below 1, a placement or activation that does not exist, a name that is taken or has other characters,
             an n that does not divide the widths, or a projection that carries another change.
    """
    design = Design(size, placement, activation, hypercomplex, rank)
    check_name(name)
    if name in adapter_list(model):
        raise ValueError(f"an adapter named {name!r} is in this model already; there are {', '.join(adapter_list(model))}: give another name, or remove it")
    check_unmerged(model, "add")
    insert_adapter(model, design, name)
    draw(model, name, torch.Generator().manual_seed(seed))
    return set_adapter(model, name)


def bottlenecks(model: nn.Module, name: str) -> dict[str, Bottleneck]:
    """Where -> bottleneck, for all that belong to the adapter `name`."""
    return {at: layer.adapters[name] for at, layer in adapted_layers(model).items() if name in layer.adapters}     # type: ignore[misc]
