"""Held-out loss, one batch at a time: memory does not depend on how much is held out."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..nn.model import Model
from ..objectives import Objective, Replaced
from ..text.readers import is_test_split
from .batches import Batches
from .precision import Precision
from .ranks import each
from .seeds import mix

Evaluation = Callable[[Model], dict[str, float]]


def refuse_test_split(validation: Any, best: str | None) -> None:
    """Raises: ValueError if the weights to keep are to be chosen on what is called a test split: the figure it gives afterwards would be too good."""
    if best is not None and is_test_split(validation):
        name = validation if isinstance(validation, str | Path) else validation.split
        raise ValueError(f"validation={name} is a test split by its name, and best={best!r} keeps the weights that do best on it; what is "
                         "chosen on a test split is no longer tested by it: give another split, or best=None to measure only")


def measure(model: Model, evaluate: Evaluation, precision: Precision) -> dict[str, float]:
    """Run an evaluation in evaluation mode, without gradients, in the run's own precision."""
    model.eval()
    with torch.no_grad(), precision.autocast():
        return {name: float(value) for name, value in evaluate(model).items()}


def asked(batches: Batches, k: int, device: torch.device) -> tuple[dict[str, Tensor], torch.Generator]:
    """Batch k. Masks are drawn from k, so every evaluation asks for the same tokens and two of them can be compared."""
    return {name: t.to(device) for name, t in batches[k].items()}, torch.Generator(device).manual_seed(mix(0, "evaluation", k))


def losses_of(model: Model, batches: Batches, objective: Objective) -> Iterator[tuple[float, int]]:
    """Of each batch the sum of the losses over its targets, and their number."""
    def ask(k: int) -> tuple[float, int]:
        loss, n = objective(model, *asked(batches, k, model.device))
        return float(loss), int(n)
    return each(range(len(batches)), ask)


def perplexity(loss: float) -> float:
    return math.exp(min(loss, 700.0))


def held_out_loss(batches: Batches, objective: Objective) -> Evaluation:
    """An evaluation for `train`: loss per target in nats and perplexity exp(loss) over one epoch of `batches`."""
    def evaluate(model: Model) -> dict[str, float]:
        loss_sum, targets = 0.0, 0
        for loss, n in losses_of(model, batches, objective):
            loss_sum, targets = loss_sum + loss, targets + n
        mean = loss_sum / max(targets, 1)
        return {"loss": mean, "perplexity": perplexity(mean), "targets": float(targets)}
    return evaluate


def held_out_replaced(batches: Batches, objective: Replaced) -> Evaluation:
    """The same for a generator and a discriminator: each one's loss per target, their weighted sum as loss, and the generator's perplexity."""
    def evaluate(model: Model) -> dict[str, float]:
        def ask(k: int) -> list[tuple[float, int]]:
            return [(float(loss), int(n)) for loss, n in objective.terms(model, *asked(batches, k, model.device))]
        sums, counts = [0.0, 0.0], [0, 0]
        for terms in each(range(len(batches)), ask):
            for i, (loss, n) in enumerate(terms):
                sums[i], counts[i] = sums[i] + loss, counts[i] + n
        masked, replaced = (total / max(n, 1) for total, n in zip(sums, counts, strict=True))
        return {"loss": masked + objective.weight * replaced, "masked_loss": masked, "replaced_loss": replaced, "perplexity": perplexity(masked),
                "targets": float(counts[1])}
    return evaluate
