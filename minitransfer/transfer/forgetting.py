"""Against forgetting: what keeps the weights, or what they can do, near the start. One argument of `finetune` and `adapt`: keep=l2sp().

    l2sp      L = L_task + alpha / 2 sum_s (w_s - w0_s)^2 + beta / 2 sum_n w_n^2            s: pretrained, n: new with the task
    ewc       L = L_task + strength / 2 sum_s F_s (w_s - w0_s)^2                            F: `fisher`, how much the old task cares for each weight
    replay    L = L_task + weight L_old                                                     L_old: the old objective on old text; in `replay.py`
    mixout    L = L_task at weights of which a random part is back at its start             in `mixout.py`

Old text is batches and an objective, both taken before `finetune` puts the task's head on the model:

    old = PackedBatches(tokenize_corpus(tok, corpus), tok, 64, 8)
    finetune(model, tok, train=rows, keep=ewc(fisher(model, old, Masked(tok), n=200), strength=1000))
    finetune(model, tok, train=rows, keep=replay(old, Masked(tok), share=0.2, head=copy_of_head(model)))

L_task is the mean over the targets of a step. Objectives return sums (the loop divides once), so a term P enters a batch of n targets as n P.
Source: Li et al. 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks", equation 2; Kirkpatrick et al. 2017,
"Overcoming catastrophic forgetting in neural networks", equation 3.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.evaluating import evaluating
from ..nn.model import Model
from ..objectives import Objective
from ..text import Batches
from ..text.stream import check_batches
from .groups import fresh_names
from .wrapped import WrappedLinear, wrapped_linears

PULLS = ("l2sp", "ewc", "replay", "mixout")
Keep = Callable[[Model, Objective], Objective]      # (model as it starts, the task's objective) -> the objective to train on


def seen(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter by its name, the way the forward pass sees it: the weight and bias of a Linear that carries LoRA or (IA)^3 with their change."""
    now: dict[str, Tensor] = dict(model.named_parameters())
    for place, layer in wrapped_linears(model, WrappedLinear).items():
        if layer.active and not layer.merged and type(layer).changed is not WrappedLinear.changed:
            weight, bias = layer.changed()
            now |= {f"{place}.weight": weight} | ({} if bias is None else {f"{place}.bias": bias})
    return now


def squared_distance(now: Mapping[str, Tensor], start: Mapping[str, Tensor], importance: Mapping[str, Tensor] | None = None) -> Tensor | float:
    """sum F (w - w0)^2 over the parameters in `start` that train now; without F each counts 1."""
    total: Tensor | float = 0.0
    for name, w in now.items():
        if name in start and w.requires_grad:
            moved = (w - start[name].to(w.device)).square()
            total = total + (moved if importance is None else importance[name].to(w.device) * moved).sum()
    return total


def penalised(objective: Objective, penalty: Callable[[Model], Tensor | float]) -> Objective:
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


def check_keep(keep: Any) -> None:
    """Raises: ValueError for a name, a list, or a function of this page that was not called."""
    uncalled = getattr(keep, "__name__", None) in PULLS
    if keep is not None and (uncalled or not callable(keep)):
        raise ValueError(f"keep={getattr(keep, '__name__', repr(keep))}; it is one of the pulls of minitransfer.transfer, called with its settings: "
                         f"give l2sp(), mixout(), ewc(importance, strength) or replay(batches, objective)")


def positive(**settings: int | float) -> None:
    for name, value in settings.items():
        if value < 0:
            raise ValueError(f"{name}={value}; it is the strength of a pull, at least 0: give 0.0 to switch it off")


def l2sp(alpha: int | float = 0.01, beta: int | float = 0.01) -> Keep:
    """Pull pretrained weights to where they started (alpha), and new ones to zero (beta). An adapter is pulled to its own start, where it changes nothing.

    Raises: ValueError for a negative strength.
    """
    positive(alpha=alpha, beta=beta)

    def keep(model: Model, objective: Objective) -> Objective:
        start = pretrained(model)
        zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters() if name not in start}

        def penalty(model: Model) -> Tensor | float:
            now = dict(model.named_parameters())
            return alpha / 2 * squared_distance(now, start) + beta / 2 * squared_distance(now, zeros)
        return penalised(objective, penalty)
    return keep


def fisher(model: Model, batches: Batches, objective: Objective, n: int, seed: int = 0) -> dict[str, Tensor]:
    """The diagonal of the empirical Fisher information of what the model can do: F = mean over texts of (d L_text / d w)^2.

    Args:    objective: of the old task; L_text is its sum over the targets of one text. n: texts; each costs a forward and a backward pass.
    Returns: a tensor for every parameter that requires a gradient. The model and its gradients are left as they were, in evaluation mode meanwhile.
    Source:  Kirkpatrick et al. 2017, section 2. Deviation: labels are those of the data, not drawn from the model (Kunstner et al. 2019 on the difference).
    Raises:  ValueError for n < 1, or texts that are not batches.
    """
    check_batches(batches, "batches")
    if n < 1:
        raise ValueError(f"n={n}; the information is a mean over texts: give at least 1, some hundreds are usual")
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = {name: torch.zeros_like(p) for name, p in weights.items()}
    generator = torch.Generator(model.device).manual_seed(seed)
    with evaluating(model):
        for text, _ in zip(single_texts(batches), range(n), strict=False):
            loss, _ = objective(model, {name: t.to(model.device) for name, t in text.items()}, generator)
            for name, g in zip(weights, torch.autograd.grad(loss, list(weights.values()), allow_unused=True), strict=True):
                if g is not None:
                    found[name] += g.square() / n
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

    The change that LoRA or (IA)^3 makes to a weight counts as its movement. Prefixes, soft prompts and bottleneck adapters move no weight and are left free.

    Args:   importance: of `fisher`, asked before an adapter is put in. A parameter it does not know is left free.
    Raises: ValueError for a negative strength, or an importance that knows no parameter of the model.
    """
    positive(strength=strength)

    def keep(model: Model, objective: Objective) -> Objective:
        start = {name: p for name, p in pretrained(model).items() if name in importance}
        if not start:
            raise ValueError(f"an importance of {len(importance)} parameters, none of them pretrained ones of this model; "
                             "it must come from the same body: fisher(model, batches, objective, n)")
        return penalised(objective, lambda m: strength / 2 * squared_distance(seen(m), start, importance))
    return keep
