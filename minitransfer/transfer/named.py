"""Several adapters on one body, each under a name: what LoRA and bottleneck adapters share.

One of them answers at a time, and trains; or, for a batch of mixed rows, each row has its own:

    y = x W^T + b        y_i <- y_i + change_{name of row i}(x_i, y_i)        a row without a name keeps its y_i, bit for bit

Source for mixed rows: Wen & Chaudhuri 2024, "Batched Low-Rank Adaptation of Foundation Models"; here the rows of one name go through together, or all rows in one kernel (LoRA).
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor, nn

from ..nn.model import Model
from ..ops.linear import linear
from .beside import agree, beside, bring_in, keep_only
from .groups import TrainableReport, fresh_names, set_trainable, trainable_report
from .wrapped import WrappedLinear, swap, wrapped_linears

DEFAULT = "default"         # the name of an adapter that was given none, as in PEFT


@dataclass(frozen=True)
class Rows:
    """Which adapter each row of a batch has, for each adapter its rows, and for each row its adapter's place among these (-1: it has none)."""

    names: tuple[str | None, ...]
    at: dict[str, Int[Tensor, "_"]] = field(compare=False)
    place: Int32[Tensor, "B"] = field(compare=False)

    @classmethod
    def of(cls, names: Sequence[str | None], device: torch.device) -> Rows:
        there = [name for name in dict.fromkeys(names) if name is not None]
        at = {name: torch.tensor([i for i, one in enumerate(names) if one == name], device=device) for name in there}
        return cls(tuple(names), at, torch.tensor([-1 if one is None else there.index(one) for one in names], dtype=torch.int32, device=device))

    def check(self, x: Float[Tensor, "B *T in"]) -> None:
        if len(x) != len(self.names):
            raise ValueError(f"use_adapter names an adapter for each of {len(self.names)} rows, and the batch has {len(x)}: give one name, or None, for each row")


class NamedLinear(WrappedLinear):
    """A Linear and its adapters by name; `chosen` is the one that answers (None: none does), or one for each row.

    A subclass says what an adapter adds (`change`), which parameters it has (`parts`) and how it goes (`drop`).
    """

    adapters: Any       # name -> adapter

    def __init__(self, base: nn.Linear):
        super().__init__(base)
        self.chosen: str | Rows | None = None

    def change(self, name: str, x: Float[Tensor, "*N in"], y: Float[Tensor, "*N out"]) -> Float[Tensor, "*N out"]:
        """What the adapter adds to the Linear's output y for x, in y's dtype."""
        raise NotImplementedError

    def parts(self, name: str) -> list[str]:
        """The names of the adapter's parameters in this module."""
        raise NotImplementedError

    def drop(self, name: str) -> None:
        """Take the adapter out of this module."""
        raise NotImplementedError

    def forward(self, x: Float[Tensor, "*N in"]) -> Float[Tensor, "*N out"]:
        y = linear(x, self.weight, self.bias)
        if self.merged or not self.active or self.chosen is None:
            return y
        if isinstance(self.chosen, Rows):
            return self.by_row(x, y, self.chosen)
        return y + self.change(self.chosen, x, y) if self.chosen in self.adapters else y

    def by_row(self, x: Float[Tensor, "B *T in"], y: Float[Tensor, "B *T out"], rows: Rows) -> Float[Tensor, "B *T out"]:
        rows.check(x)
        for name, at in rows.at.items():
            if name in self.adapters:
                y = y.index_add(0, at, self.change(name, x[at], y[at]))
        return y


Named = TypeVar("Named", bound=NamedLinear)


def named_linears(model: nn.Module) -> dict[str, NamedLinear]:
    """Name -> layer, for every Linear of the model that carries adapters with names."""
    return wrapped_linears(model, NamedLinear)


def wrap(model: nn.Module, at: str, kind: type[Named]) -> Named:
    """The layer of this kind at `at`; put around the Linear there if there is none yet."""
    there = model.get_submodule(at)
    if isinstance(there, kind):
        return there
    assert isinstance(there, nn.Linear)
    layer = kind(there).train(there.training)
    swap(model, at, layer)
    return layer


def adapter_list(model: nn.Module) -> list[str]:
    """The names of the adapters in the model, in alphabetical order."""
    return sorted({name for layer in named_linears(model).values() for name in layer.adapters})


def chosen_adapter(model: nn.Module) -> str | None:
    """The name of the one that answers every row."""
    return next((layer.chosen for layer in named_linears(model).values() if isinstance(layer.chosen, str)), None)


def need_chosen(model: nn.Module, verb: str) -> str:
    """Raises: ValueError if none is chosen."""
    if (name := chosen_adapter(model)) is None:
        raise ValueError(f"{verb} with none of the adapters {', '.join(adapter_list(model))} chosen; it takes one: choose it with set_adapter")
    return name


def by_row(model: nn.Module) -> bool:
    """Whether each row of a batch has an adapter of its own."""
    return any(isinstance(layer.chosen, Rows) for layer in named_linears(model).values())


def check_not_by_row(model: nn.Module, verb: str) -> None:
    """Raises: ValueError if each row of a batch has an adapter of its own, where texts are put into batches in another order."""
    if by_row(model):
        raise ValueError(f"{verb} with an adapter for each row; it puts texts of like length together, so that their rows are not yours: "
                         "call it once for each adapter, or the model itself")


def adapter_names(model: nn.Module, name: str | None = None) -> list[str]:
    """The names of the parameters of one adapter (None: of the chosen one); a shared one goes by the first of its names."""
    name = name or chosen_adapter(model)
    inside = {f"{at}.{part}" for at, layer in named_linears(model).items() if name is not None and name in layer.adapters for part in layer.parts(name)}
    return [parameter for parameter, _ in model.named_parameters() if parameter in inside]


def check_name(name: str) -> None:
    if not re.fullmatch(r"[\w-]+", name) or hasattr(nn.ModuleDict(), name):
        raise ValueError(f"an adapter named {name!r}; the name becomes part of its parameters' names: use letters, digits, - and _")


def check_there(model: nn.Module, names: Sequence[str | None], verb: str) -> None:
    """Raises: ValueError for a name that no adapter has, or a merged model."""
    for name in names:
        if name is not None and name not in adapter_list(model):
            raise ValueError(f"no adapter is called {name!r}; this model has {', '.join(adapter_list(model)) or 'none'}: {verb} one of these, or add or load it first")
    check_unmerged(model, verb)


def check_unmerged(model: nn.Module, verb: str) -> None:
    if any(layer.merged for layer in named_linears(model).values()):
        raise ValueError(f"{verb} an adapter of a model whose weights hold {chosen_adapter(model)!r} already, since it is merged: call unmerge_lora(model) first")


def set_adapter(model: Model, name: str | None) -> TrainableReport:
    """Let this adapter answer, and train; None: none does, and the model answers as its base, bit for bit.

    One that was loaded with a head answers with it; those that were added here share the base's.

    Raises: ValueError for a name that no adapter has, or a merged model.
    """
    check_there(model, [name], "choose")
    for layer in named_linears(model).values():
        layer.chosen = name
    bring_in(model, name)
    set_trainable(model, {*(adapter_names(model) if name else ()), *fresh_names(model), *beside(model).base})
    return trainable_report(model)


@contextmanager
def use_adapter(model: Model, which: str | Sequence[str | None] | None) -> Iterator[None]:
    """Inside the `with`, another adapter answers, or for each row of the batch its own; what trains stays as it is.

        with use_adapter(model, "law"): ...                         # the whole batch
        with use_adapter(model, ["law", None, "news"]): ...         # rows 0, 1, 2; None: as the base

    Under gradient checkpointing `backward` belongs inside, too: it computes the blocks once more.

    Raises: ValueError for a name that no adapter has, rows whose adapters were loaded with different heads, or a merged model; in the forward pass, for a
            batch of another number of rows; and, with names for rows, in what orders texts itself, such as `predict`.
    """
    names = [which] if which is None or isinstance(which, str) else list(which)
    check_there(model, names, "use")
    if not agree(model, names):
        raise ValueError(f"use_adapter with rows for {', '.join(map(str, dict.fromkeys(names)))}, which were loaded with different heads; one head answers a batch: "
                         "give each adapter a batch of its own, or load them with load_several and choose with heads.use")
    chosen = which if which is None or isinstance(which, str) else Rows.of(names, model.device)
    layers = list(named_linears(model).values())
    packing: list[Any] = [stack for stack in model.modules() if getattr(stack, "packs", False) is not False] if isinstance(chosen, Rows) else []
    was, packs, brought = [layer.chosen for layer in layers], [stack.packs for stack in packing], beside(model).now
    for layer in layers:
        layer.chosen = chosen
    for stack in packing:                                                        # without their padding the rows of a batch are one
        stack.packs = False
    bring_in(model, names[0] if names else None)
    try:
        yield
    finally:
        bring_in(model, brought)
        for layer, before in zip(layers, was, strict=True):
            layer.chosen = before
        for stack, wanted in zip(packing, packs, strict=True):
            stack.packs = wanted


def remove_adapter(model: nn.Module, name: str) -> None:
    """Take one adapter out; the others stay. Where it was the last one the plain Linear comes back.

    Raises: ValueError for a name that no adapter has, or a merged model.
    """
    check_there(model, [name], "remove")
    keep_only(model, set(beside(model).own) - {name})
    for at, layer in named_linears(model).items():
        if name in layer.adapters:
            layer.drop(name)
        layer.chosen = None if layer.chosen == name else layer.chosen
        if not layer.adapters:
            swap(model, at, layer.plain())
