"""What a file brings beside its adapter, such as the head it was trained with: each adapter has its own, and the base keeps its.

The values of the adapter that answers stand in the model's parameters; those of the others, and the base's own, wait here and come back bit for bit.
An adapter that brought nothing answers with what the base has.
"""
from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Values = dict[str, tuple[nn.Parameter, Tensor]]         # name of a parameter -> it, and the value that waits for it


@dataclass
class Beside:
    """`own`: adapter -> what it brought; `base`: the base's values of what `now` brought, whose values stand in the model."""

    own: dict[str, Values] = field(default_factory=dict)
    base: Values = field(default_factory=dict)
    now: str | None = None


def beside(model: nn.Module) -> Beside:
    return vars(model).setdefault("beside", Beside())


def exchange(waiting: Values) -> Values:
    """Put the values that wait into their parameters. Returns: those that stood there."""
    stood = {name: (p, p.data) for name, (p, _) in waiting.items()}
    for p, value in waiting.values():
        p.data = value.to(p)
    return stood


def bring_in(model: nn.Module, adapter: str | None) -> None:
    """Let what this adapter brought stand in the model (None, or an adapter that brought nothing: what the base has)."""
    held = beside(model)
    if not held.own:
        return
    parameters = dict(model.named_parameters())
    for values in (held.base, *held.own.values()):
        for name in [name for name, (p, _) in values.items() if parameters.get(name) is not p]:
            del values[name]                            # another head was put there: this one's values are not for it
    if held.now in held.own:
        held.own[held.now] = exchange(held.base)
    held.now, held.base = adapter, exchange(held.own.get(adapter or "", {}))


def give(model: nn.Module, adapter: str, values: dict[str, Tensor]) -> None:
    """Keep the values of these parameters as the adapter's own, and let them stand in the model."""
    bring_in(model, None)
    parameters = dict(model.named_parameters())
    beside(model).own[adapter] = {name: (parameters[name], torch.empty_like(parameters[name].data).copy_(value)) for name, value in values.items()}
    bring_in(model, adapter)


def keep_only(model: nn.Module, adapters: Collection[str]) -> None:
    """Forget what any other adapter brought; if one of these answers, the base's values come back."""
    held = beside(model)
    if held.now not in adapters:
        bring_in(model, None)
    held.own = {name: values for name, values in held.own.items() if name in adapters}


def leave(model: nn.Module) -> None:
    """Forget what all adapters brought; the base's values come back below the head, and the head stays as it is."""
    exchange({name: one for name, one in beside(model).base.items() if not name.startswith(("head.", "pooler."))})
    vars(model).pop("beside")


def agree(model: nn.Module, adapters: Iterable[str | None]) -> bool:
    """Whether all of these answer with equal values of what any of them brought."""
    held = beside(model)
    now = held.now
    bring_in(model, None)
    each = [held.own.get(one or "", {}) for one in set(adapters)]
    brought = {name: p for values in each for name, (p, _) in values.items()}
    same = all(torch.equal(values.get(name, (p, p.data))[1].to(p), each[0].get(name, (p, p.data))[1].to(p)) for values in each[1:] for name, p in brought.items())
    bring_in(model, now)
    return same
