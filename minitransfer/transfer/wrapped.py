"""A Linear and a trained change of it in one module, which stands where the Linear stood: what LoRA, (IA)^3 and bottleneck adapters share."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..ops.linear import Linear
from ..ops.quantized_weight import QuantizedWeight

BASE = ("weight", "bias")       # the parameters that are the Linear's own


class WrappedLinear(nn.Module):
    """A Linear and a change. The base keeps its tensors and their names, `weight` and `bias`; the change's own parameters join them.

    A subclass says what `forward` computes and what it is CALLED and, if the change can be added to the base, gives `changed`.
    """

    CALLED: ClassVar[str]

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.active = True
        self.kept: dict[str, Any] | None = None         # while merged: the untouched weight and bias, and the change's parameters

    @property
    def merged(self) -> bool:
        return self.kept is not None

    def changed(self) -> tuple[Float[Tensor, "out in"], Float[Tensor, "out"] | None]:
        """The weight and the bias of the one Linear that computes the same, in fp32."""
        raise NotImplementedError

    def merge(self) -> None:
        """weight, bias <- the changed ones, computed in fp32 and cast once; the change's parameters are put aside, so that only the base's own are left.

        Merging twice is merging once.
        """
        if self.merged:
            return
        if isinstance(self.weight, QuantizedWeight):
            raise ValueError(f"merging {self.CALLED} into a weight that is held as codes; quantised again, the sum would lose most of the change: call dequantize(model) first, "
                             "or load the adapter onto the base as it was before")
        with torch.no_grad():
            weight, bias = self.changed()
        own = {name: p for name, p in self._parameters.items() if name not in BASE}
        self.kept = {"weight": self.weight.data, "bias": None if self.bias is None else self.bias.data, **own}
        self.weight.data = weight.to(self.weight.dtype, copy=True)      # what is kept shares no memory with what may be trained
        if self.bias is not None and bias is not None:
            self.bias.data = bias.to(self.bias.dtype, copy=True)
        for name in own:
            setattr(self, name, None)

    def unmerge(self) -> None:
        """Put the kept weight and bias back, the bits from before the merge (in the dtype the model has now), and the change's parameters with them."""
        if self.kept is None:
            return
        kept, self.kept = self.kept, None
        now = self.weight.data.new_empty(0)
        cast = now.dtype != kept["weight"].dtype                        # the model was cast meanwhile, and with it what was put aside
        for name, value in kept.items():
            if isinstance(value, nn.Parameter):
                value.data = value.data.to(now) if cast else value.data.to(now.device)
                setattr(self, name, value)
            elif value is not None:
                getattr(self, name).data = value.to(now)

    def plain(self) -> nn.Linear:
        """The Linear that was there before, with its own parameters."""
        self.unmerge()
        base = Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        base.weight, base.bias = self.weight, self.bias
        return base


Wrapped = TypeVar("Wrapped", bound=WrappedLinear)


def wrapped_linears(model: nn.Module, kind: type[Wrapped]) -> dict[str, Wrapped]:
    """Name -> module, for every Linear of the model that carries a change of this kind."""
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def linear_names(model: nn.Module) -> list[str]:
    """Every Linear of the model's own, wrapped or not; not those inside a wrapper."""
    wrappers = tuple(name + "." for name in wrapped_linears(model, WrappedLinear))
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | WrappedLinear) and not name.startswith(wrappers)]


def own_names(model: nn.Module, kind: type[WrappedLinear]) -> list[str]:
    """The names of the parameters that changes of this kind bring; a shared one goes by the first of its names."""
    own = {f"{at}.{name}" for at, layer in wrapped_linears(model, kind).items() for name, _ in layer.named_parameters() if name not in BASE}
    return [name for name, _ in model.named_parameters() if name in own]


def swap(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where `name` is."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def check_free(model: nn.Module, names: Iterable[str]) -> None:
    """Raises: ValueError if one of the Linears carries a change already."""
    for name in names:
        if isinstance(one := model.get_submodule(name), WrappedLinear):
            raise ValueError(f"{name} already carries {one.CALLED}; a Linear has one change: "
                             "call remove_adapters(model) first, or merge it and save the model")


def remove_wrapped(model: nn.Module, kind: type[WrappedLinear]) -> None:
    """Put the plain Linears back; their tensors are then what they were, bit for bit."""
    for name, layer in wrapped_linears(model, kind).items():
        swap(model, name, layer.plain())


def inserted(model: nn.Module) -> list[Any]:
    """Every module that a way to adapt put in and that can be switched off: it has `active`."""
    return [module for module in model.modules() if hasattr(module, "active")]


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, the model answers as its base does. Not for merged models: their weights are changed.

    Raises: ValueError for a merged model.
    """
    modules = inserted(model)
    if any(getattr(module, "merged", False) for module in modules):
        raise ValueError("adapters_off on a merged model; its weights already hold the change: call unmerge_lora(model) or unmerge_ia3(model) first")
    was = [module.active for module in modules]
    for module in modules:
        module.active = False
    try:
        yield
    finally:
        for module, active in zip(modules, was, strict=True):
            module.active = active
