"""When a number stops being a number: where it happened first, and what to do."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor, nn

from .ranks import each, full, world


class NonFiniteError(ValueError):
    """A weight, a loss or a gradient is NaN or infinite."""


def check_weights(model: nn.Module) -> None:
    """Raises: NonFiniteError that names the first parameter with a NaN or an infinity, before it can spread through everything."""
    for name, p in model.named_parameters():
        if bad := int((~p.detach().isfinite()).sum()):
            raise NonFiniteError(f"{bad} of the {p.numel()} values in {name} are NaN or infinite; training needs finite weights: "
                                 "this checkpoint is damaged or comes from a run that diverged, load another one or an earlier save")


def check_trained(trained: Mapping[str, Tensor], step: int, kept: str) -> None:
    """Raises: NonFiniteError that names the first trained parameter a step has made NaN or infinite; its own loss was finite."""
    for name, p in trained.items():
        if not bool(full(p.detach()).isfinite().all()):
            raise NonFiniteError(f"step {step} left NaN or infinite values in {name}; only finite weights are saved, and {kept}: "
                                 'lower lr, lengthen warmup, or use precision="fp32"')


def tensors_in(value: object) -> Iterator[Tensor]:
    """Every floating-point tensor in what a module returned."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors_in(one)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors_in(getattr(value, field.name))


def first_non_finite(model: nn.Module, forward: Callable[[], object]) -> str | None:
    """Run `forward` once more and return the name of the first module, innermost first, whose output is not finite."""
    found: list[str] = []

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not found and not all(bool(t.isfinite().all()) for t in tensors_in(output)):
                found.append(name)
        return hook

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            forward()
    finally:
        for one in hooks:
            one.remove()
    return found[0] if found else None


def explain_non_finite(model: nn.Module, forward: Callable[[], object], loss: float, step: int, saved: int | None) -> NonFiniteError:
    """The error for a step whose loss or gradient is not finite.

    Args: forward: runs the step's forward passes again, with the same random numbers; step: its number, from 1; saved: that of the last good save.
    """
    found = each(range(world()), lambda r: first_non_finite(model, forward))
    where = next((one for one in list(found) if one is not None), None)
    if where is not None:
        what = f"the first module with a non-finite output is {where}"
    elif loss - loss != 0:
        what = "every module's output is finite, the loss of the head is not: look at the labels"
    else:
        bad = [name for name, p in model.named_parameters() if p.grad is not None and not bool(full(p.grad).isfinite().all())]
        what = f"the loss is finite, the gradient is not; nearest to the loss that is {bad[-1] if bad else 'the norm over all parameters'}"
    kept = "nothing was saved yet" if saved is None else f"the save of step {saved} is intact"
    return NonFiniteError(f"step {step}: the loss ({loss:g}) or its gradient is NaN or infinite; {what}. This step changed no weight, and "
                          f'{kept}: lower lr, lengthen warmup, set max_grad_norm, or use precision="fp32"')
