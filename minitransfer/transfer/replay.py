"""Replay: the old objective on old text beside the task, so that what it taught is not forgotten.

    L = L_task + weight L_old        L_old: the mean of the old objective over the old rows of this batch

Source: Robins 1995, "Catastrophic Forgetting, Rehearsal and Pseudorehearsal" (rehearsal).
"""
from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import torch
from torch import Tensor, nn

from ..nn.heads import VocabularyHead
from ..nn.model import Model
from ..objectives import Causal, Masked, Objective
from ..text import Batches
from ..text.stream import check_batches
from .forgetting import Keep, positive


@contextmanager
def answering_with(model: Model, head: nn.Module) -> Iterator[Model]:
    """Inside the `with`, the body is asked by another head."""
    own, model.head = model.head, head
    try:
        yield model
    finally:
        model.head = own


def draw(batches: Batches, generator: torch.Generator) -> dict[str, Tensor]:
    """One of the batches."""
    return batches[int(torch.randint(len(batches), (), generator=generator, device=generator.device))]


def draw_rows(batches: Batches, n: int, generator: torch.Generator) -> Iterator[dict[str, Tensor]]:
    """`n` rows, drawn from as many batches as it takes; each batch for itself, since their widths differ."""
    while n > 0:
        batch = draw(batches, generator)
        rows = torch.randperm(len(batch["input_ids"]), generator=generator, device=generator.device)[:n].cpu()
        yield {name: column[rows] for name, column in batch.items()}
        n -= len(rows)


def whole(rows: Fraction, generator: torch.Generator) -> int:
    """A whole number of rows next to `rows`, and equal to it on average; no number is drawn if it is whole."""
    sure, rest = divmod(rows, 1)
    return int(sure) + (rest > 0 and float(torch.rand((), generator=generator, device=generator.device)) < rest)


def replay(batches: Batches, objective: Objective, weight: int | float | None = None, head: nn.Module | None = None, share: int | float | None = None) -> Keep:
    """Go on with the old objective beside the task: old rows follow each batch of the task, drawn from the step's generator.

    Args:   share: of the old rows among all rows, in [0, 1): 0.2 puts 8 of them beside 32 of the task. It is exact in every batch where that is a whole number,
            elsewhere to within one row, and on average. None: one whole old batch beside each batch of the task.
            weight: of the old mean loss against the task's; None: 1, or share / (1 - share), so that an old row counts as much as a new one.
            head: what the old objective asks: `copy_of_head(model)`, taken before `finetune` puts the task's head in its place; None if both are asked of
            one head.
    Raises: ValueError for a negative weight, a share out of range, or texts that are not batches; when the run starts, for raw text without a vocabulary head.
    """
    if share is not None and not 0 <= share < 1:
        raise ValueError(f"share={share}; it is the part of the rows that are old, at least 0 and below 1: 0.1 to 0.5 are usual")
    beside = None if share is None else Fraction(str(share)) / (1 - Fraction(str(share)))        # old rows for each row of the task
    strength = weight if weight is not None else 1.0 if beside is None else float(beside)
    positive(weight=strength)
    check_batches(batches, "batches")

    def keep(model: Model, task: Objective) -> Objective:
        if head is None and isinstance(objective, Masked | Causal) and not isinstance(model.head, VocabularyHead):
            raise ValueError(f'replay of raw text, and a model with head="{model.head_name}"; the old objective asks a head over the vocabulary: '
                             "take copy_of_head(model) before finetune, and give replay(..., head=that)")

        def loss(model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int | Tensor]:
            total, n = task(model, batch, generator)
            if beside is None:
                part, old = 1.0, iter([draw(batches, generator)])
            else:
                wanted = beside * len(batch["input_ids"])
                rows = whole(wanted, generator)
                part, old = float(rows / wanted) if wanted else 0.0, draw_rows(batches, rows, generator)
            with answering_with(model, model.head if head is None else head):
                asked = [objective(model, {name: t.to(model.device) for name, t in one.items()}, generator) for one in old]
            targets = max(sum(int(count) for _, count in asked), 1)
            return sum((one * (strength * part * n / targets) for one, _ in asked), start=total), n
        return loss
    return keep


def copy_of_head(model: Model) -> nn.Module:
    """The model's head, frozen, to be asked later on the same body: a vocabulary head goes on reading the body's own token table.

    Raises: ValueError for a model without one.
    """
    if model.head is None:
        raise ValueError('copy_of_head of a model with head="none"; there is nothing to keep: load the checkpoint with the head it was pretrained with')
    return copy.deepcopy(model.head, {id(model.embed.tokens): model.embed.tokens}).requires_grad_(False)
