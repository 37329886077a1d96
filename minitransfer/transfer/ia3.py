"""(IA)^3: a frozen Linear whose outputs, or inputs, are scaled by a trained vector. Three vectors a block: on keys, values and the feed-forward's hidden.

    k, v:    y = l * (x W^T + b)          l: (out,), ones
    hidden:  y = (l * x) W^T + b          l: (in,),  ones         on down_proj, whose input is the hidden

Source: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", section 3.3.
"""
from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..nn.model import Model
from ..ops.linear import linear
from .groups import TrainableReport, fresh_names, set_trainable, trainable_report
from .lora import match_targets
from .wrapped import WrappedLinear, check_free, own_names, swap, wrapped_linears


class IA3Linear(WrappedLinear):
    """A Linear and its vector `ia3`, of the outputs or, with `on_input`, of the inputs."""

    CALLED = "(IA)^3"
    ia3: nn.Parameter

    def __init__(self, base: nn.Linear, on_input: bool = False):
        super().__init__(base)
        self.on_input = on_input
        self.ia3 = nn.Parameter(torch.ones(base.in_features if on_input else base.out_features, device=base.weight.device))

    def forward(self, x: Float[Tensor, "*N in"]) -> Float[Tensor, "*N out"]:
        if self.merged or not self.active:
            return linear(x, self.weight, self.bias)
        if self.on_input:
            return linear((x * self.ia3).to(x.dtype), self.weight, self.bias)
        y = linear(x, self.weight, self.bias)
        return (y * self.ia3).to(y.dtype)

    def changed(self) -> tuple[Float[Tensor, "out in"], Float[Tensor, "out"] | None]:
        if self.on_input:
            return self.weight.float() * self.ia3.float(), self.bias
        return self.weight.float() * self.ia3.float()[:, None], None if self.bias is None else self.bias.float() * self.ia3.float()

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, scales its {'input' if self.on_input else 'output'}" + (", merged" if self.merged else "")


def insert_ia3(model: nn.Module, name: str, on_input: bool) -> None:
    base = model.get_submodule(name)
    assert isinstance(base, nn.Linear)
    swap(model, name, IA3Linear(base, on_input).train(base.training))


def add_ia3(model: Model, outputs: str | list[str] = "k,v", inputs: str | list[str] = "down") -> TrainableReport:
    """Insert the vectors, freeze everything but them and a task's head, and leave the outputs as they were, bit for bit.

    Args:    outputs: the Linears whose outputs are scaled; inputs: those whose inputs are; named as in `match_targets`, either may be empty.
    Returns: the report of what trains now.
    Raises:  ValueError for a name that matches no Linear, none at all, a Linear named twice, or one that carries a change already.
    """
    sides = [(name, on_input) for targets, on_input in ((outputs, False), (inputs, True)) if targets for group in match_targets(model, targets) for name in group]
    names = [name for name, _ in sides]
    if not names:
        raise ValueError("add_ia3 with neither outputs nor inputs; there is nothing to scale: give for example outputs='k,v'")
    if len(set(names)) < len(names):
        raise ValueError(f"outputs={outputs!r} and inputs={inputs!r} name the same Linears; a Linear is scaled on one side: take them out of one list")
    check_free(model, names)
    for name, on_input in sides:
        insert_ia3(model, name, on_input)
    set_trainable(model, {*ia3_names(model), *fresh_names(model)})
    return trainable_report(model)


def ia3_layers(model: nn.Module) -> dict[str, IA3Linear]:
    """Name -> layer, for every Linear of the model that carries a vector."""
    return wrapped_linears(model, IA3Linear)


def ia3_names(model: nn.Module) -> list[str]:
    """The names of the vectors."""
    return own_names(model, IA3Linear)


def merge_ia3(model: nn.Module) -> None:
    """Multiply every vector into its weight and bias, in fp32, cast once; the model then costs what it cost without. `unmerge_ia3` takes it back.

    Raises: ValueError if the model carries no (IA)^3.
    """
    if not (layers := ia3_layers(model)):
        raise ValueError("merge_ia3 on a model without (IA)^3; there is nothing to merge: call add_ia3 or load_adapter first")
    for layer in layers.values():
        layer.merge()


def unmerge_ia3(model: nn.Module) -> None:
    """Take the vectors out of the weights again: the kept tensors come back, bit for bit."""
    for layer in ia3_layers(model).values():
        layer.unmerge()
