"""Against forgetting: a term beside the task's loss that keeps the weights, or what they can do, near the start. One argument of `finetune`: keep=l2sp().

    l2sp      L = L_task + alpha / 2 sum_s (w_s - w0_s)^2 + beta / 2 sum_n w_n^2            s: pretrained, n: new with the task
    ewc       L = L_task + strength / 2 sum_s F_s (w_s - w0_s)^2                            F: `fisher`, how much the old task cares for each weight
    replay    L = L_task + weight L_old                                                     L_old: the old objective on old text, a batch each step

L_task is the mean over the targets of a step. Objectives return sums (the loop divides once), so a term P enters a batch of n targets as n P.
Source: Li et al. 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", equation 2; Kirkpatrick et al. 2017,
"Overcoming catastrophic forgetting in neural networks", equation 3; Robins 1995 (rehearsal).
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..nn.model import Model
from ..objectives import Objective
from ..text import Batches
from .groups import fresh_names

Keep = Callable[[Model, Objective], Objective]      # (model as it starts, the task's objective) -> the objective to train on


def squared_distance(model: nn.Module, start: Mapping[str, Tensor], importance: Mapping[str, Tensor] | None = None) -> Float[Tensor, ""]:
    """sum F (w - w0)^2 over the parameters in `start` that train now; without F each counts 1."""
    total: Any = 0.0
    for name, p in model.named_parameters():
        if name in start and p.requires_grad:
            moved = (p - start[name].to(p.device)).square()
            total = total + (moved if importance is None else importance[name].to(p.device) * moved).sum()
    return total if isinstance(total, Tensor) else torch.zeros((), device=next(model.parameters()).device)


def penalised(objective: Objective, penalty: Callable[[Model], Tensor]) -> Objective:
    """The objective with a term that depends on the weights alone."""
    def loss(model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int | Tensor]:
        total, n = objective(model, batch, generator)
        with torch.autocast(total.device.type, enabled=False):
            return total + n * penalty(model), n
    return loss


def pretrained(model: Model) -> dict[str, Tensor]:
    """A copy of every parameter that is not new with the task."""
    fresh = set(fresh_names(model))
    return {name: p.detach().clone() for name, p in model.named_parameters() if name not in fresh}


def positive(**settings: int | float) -> None:
    for name, value in settings.items():
        if value < 0:
            raise ValueError(f"{name}={value}; it is the strength of a pull, at least 0: give 0.0 to switch it off")


def l2sp(alpha: int | float = 0.01, beta: int | float = 0.01) -> Keep:
    """Pull pretrained weights to where they started (alpha), and new ones to zero (beta).

    Raises: ValueError for a negative strength.
    """
    positive(alpha=alpha, beta=beta)

    def keep(model: Model, objective: Objective) -> Objective:
        start = pretrained(model)
        zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters() if name not in start}
        return penalised(objective, lambda m: alpha / 2 * squared_distance(m, start) + beta / 2 * squared_distance(m, zeros))
    return keep


def fisher(model: Model, batches: Batches, objective: Objective, n: int, seed: int = 0) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information of what the model can do: F = mean over texts of (d L_text / d w)^2.

    Args:    objective: of the old task; L_text is its sum over the targets of one text. n: texts; each costs a forward and a backward pass.
    Returns: a tensor for every parameter that requires a gradient. The model and its gradients are left as they were, in evaluation mode meanwhile.
    Source:  Kirkpatrick et al. 2017, section 2. Deviation: labels are those of the data, not drawn from the model (Kunstner et al. 2019 on the difference).
    Raises:  ValueError for n < 1.
    """
    if n < 1:
        raise ValueError(f"n={n}; the information is a mean over texts: give at least 1, some hundreds are usual")
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = {name: torch.zeros_like(p) for name, p in weights.items()}
    generator, training = torch.Generator(model.device).manual_seed(seed), model.training
    model.eval()
    for text, _ in zip(single_texts(batches), range(n), strict=False):
        loss, _ = objective(model, {name: t.to(model.device) for name, t in text.items()}, generator)
        for name, g in zip(weights, torch.autograd.grad(loss, list(weights.values()), allow_unused=True), strict=True):
            if g is not None:
                found[name] += g.square() / n
    model.train(training)
    return found


def single_texts(batches: Batches) -> Iterator[dict[str, Tensor]]:
    """The rows of the batches one by one, without end."""
    k = 0
    while True:
        batch = batches[k]
        yield from ({name: t[i:i + 1] for name, t in batch.items()} for i in range(len(batch["input_ids"])))
        k += 1


def ewc(importance: Mapping[str, Tensor], strength: int | float) -> Keep:
    """Pull each pretrained weight to where it started, by how much the old task cares for it.

    Args:   importance: of `fisher`. A parameter it does not know is left free.
    Raises: ValueError for a negative strength, or an importance that knows no parameter of the model.
    """
    positive(strength=strength)

    def keep(model: Model, objective: Objective) -> Objective:
        start = {name: p for name, p in pretrained(model).items() if name in importance}
        if not start:
            raise ValueError(f"an importance of {len(importance)} parameters, none of them pretrained ones of this model; "
                             "it must come from the same body: fisher(model, batches, objective, n)")
        return penalised(objective, lambda m: strength / 2 * squared_distance(m, start, importance))
    return keep


@contextmanager
def answering_with(model: Model, head: nn.Module) -> Iterator[Model]:
    """Inside the `with`, the body is asked by another head."""
    own, model.head = model.head, head
    try:
        yield model
    finally:
        model.head = own


def replay(batches: Batches, objective: Objective, weight: int | float = 1.0, head: nn.Module | None = None) -> Keep:
    """Go on with the old objective beside the task: each batch of the task is followed by one old batch, drawn from the step's generator.

    Args:   weight: of the old mean loss against the task's. head: what the old objective asks: `copy_of_head(model)`, taken before `finetune` puts the
            task's head in its place; None if both are asked of one head.
    Raises: ValueError for a negative weight.
    """
    positive(weight=weight)

    def keep(model: Model, task: Objective) -> Objective:
        def loss(model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int | Tensor]:
            total, n = task(model, batch, generator)
            k = int(torch.randint(len(batches), (), generator=generator, device=generator.device))
            old = {name: t.to(model.device) for name, t in batches[k].items()}
            with answering_with(model, model.head if head is None else head):
                old_total, old_n = objective(model, old, generator)
            return total + old_total * (weight * n / max(int(old_n), 1)), n
        return loss
    return keep


def copy_of_head(model: Model) -> nn.Module:
    """The model's head, frozen, to be asked later on the same body: a vocabulary head goes on reading the body's own token table.

    Raises: ValueError for a model without one.
    """
    if model.head is None:
        raise ValueError('copy_of_head of a model with head="none"; there is nothing to keep: load the checkpoint with the head it was pretrained with')
    return copy.deepcopy(model.head, {id(model.embed.tokens): model.embed.tokens}).requires_grad_(False)
