"""Domain adaptation: labelled rows of a source domain, unlabelled text of the target one, and a term that makes the head read both alike. Around any strategy:

    target = TextBatches(read_rows("target.jsonl"), tok)
    finetune(model, tok, train=rows, strategy=coral(target))                    or adversarial(target, "lora")

    coral          L = L_task + weight |C_s - C_t|_F^2 / (4 D^2)                C: covariances of what the head reads
    adversarial    L = L_task + L_domain, body against discriminator            the body gets -lambda dL_domain/dx, the discriminator dL_domain/dw

L_task is a mean over the targets of a step and objectives return sums, so a term P enters a batch of n targets as n P. Each batch of the task meets one of target text.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.fresh import Unfilled, initialise
from ..nn.heads import BodyOutput, VocabularyHead
from ..nn.model import Model
from ..objectives import Objective
from ..objectives.alignment import Discriminator, coral_loss, reversal_at, reverse_gradient, vectors
from ..objectives.base import INPUTS
from ..text import Batches
from ..text.stream import check_batches
from .base import Strategy
from .groups import JUDGE
from .strategies import strategy as strategy_of

Term = Callable[[Model, Tensor, Tensor], Tensor]    # (model, vectors of the source, of the target) -> a mean


@contextmanager
def overheard(head: nn.Module) -> Iterator[list[BodyOutput]]:
    """What the head is given within the `with`: the source passes through the body once, for its labels and for its domain."""
    heard: list[BodyOutput] = []
    handle = head.register_forward_pre_hook(lambda module, given: heard.append(given[0]))
    try:
        yield heard
    finally:
        handle.remove()


def aligned(plan: Strategy, name: str, target: Batches, weight: int | float, term: Term) -> Strategy:
    """The strategy, with a term between what the head reads of the task's batch and of a batch of target text drawn from the step's generator."""
    check_batches(target, "target")

    def insert(model: Model, seed: int) -> None:
        if isinstance(model.head, VocabularyHead):
            raise ValueError(f"{name} of a model with head {model.head_name!r}, whose language goes on; domains are aligned in what a task's head reads: "
                             "use it with finetune, or adapt on text of both domains without it")
        plan.insert(model, seed)
        if all(one.startswith("head.") for one in plan.trains(model)):
            raise ValueError(f"{name} around strategy {plan.name!r}, which trains nothing below the head; domains are aligned in what the head reads, and that has to move: "
                             'choose a strategy that trains a part of the body, such as "full" or "lora"')

    def objective(model: Model, task: Objective) -> Objective:
        inner = plan.objective(model, task)

        def loss(model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int | Tensor]:
            with overheard(model.head) as heard:
                total, n = inner(model, batch, generator)
            k = int(torch.randint(len(target), (), generator=generator, device=generator.device))
            inputs: dict[str, Any] = {key: t.to(model.device) for key, t in target[k].items() if key in INPUTS}
            there = model.body(**inputs)
            with torch.autocast(total.device.type, enabled=False):
                return total + weight * n * term(model, vectors(model, heard[0]), vectors(model, there)), n
        return loss
    return replace(plan, name=f"{plan.name} + {name}", insert=insert, objective=objective)


def coral(target: Batches, strategy: str | Strategy = "full", weight: int | float = 1.0) -> Strategy:
    """Any strategy, and the covariances of both domains are drawn together.

    Args:   target: batches of text of the target domain, as `TextBatches` makes them; labels are not read. Covariances are of one batch: 32 rows or more.
            weight: of the distance against the task's mean loss. The paper sets it so that both are about equal at the end of the run.
    Source: Sun & Saenko 2016. Deviation: on the vectors the head reads, where the paper takes its outputs.
    Raises: ValueError for a negative weight or texts that are not batches; when applied, for a strategy that trains the head alone, or a head that writes.
    """
    if weight < 0:
        raise ValueError(f"weight={weight}; it is the strength of a pull, at least 0: give 0.0 to switch it off")
    return aligned(strategy_of(strategy), "coral", target, weight, lambda model, here, there: coral_loss(here, there))


@contextmanager
def without_discriminator(model: Model) -> Iterator[None]:
    """Within the `with`, the model is as its user knows it."""
    module = model._modules.pop(JUDGE)
    try:
        yield
    finally:
        model.add_module(JUDGE, module)


def adversarial(target: Batches, strategy: str | Strategy = "full", strength: int | float = 1.0, hidden: int = 128, rate: int | float = 3.0) -> Strategy:
    """Any strategy, and a discriminator that learns to tell the domains apart while the body learns to deceive it.

    The discriminator is a part of the model during the run: it trains in the same optimizer, is resumed with it, is in no file for the user and gone afterwards.

    The two chase each other. A domain loss far above 2 log 2 says that the body overshoots: use a lower lr or strength, or no momentum (beta1=0.0).

    Args:   target: see `coral`. strength: lambda at the end of the run; on the way it follows `reversal_at`.
            hidden: width of the discriminator; rate: its learning rate, in multiples of the run's.
    Source: Ganin et al. 2016, "Domain-Adversarial Training of Neural Networks". Deviations: Adam in the place of SGD, and a higher rate for what
            starts from nothing beside a pretrained body.
    Raises: ValueError for a setting that is not above zero or texts that are not batches; when applied, for a strategy that trains the head alone, or a head that writes.
    """
    if min(strength, hidden, rate) <= 0:
        raise ValueError(f"strength={strength}, hidden={hidden}, rate={rate}; each has to be above zero: correct it, or leave the discriminator out")

    def term(model: Model, here: Tensor, there: Tensor) -> Tensor:
        lam, judge = strength * reversal_at(model.progress), model.get_submodule(JUDGE)
        assert isinstance(judge, Discriminator)
        return judge.loss(reverse_gradient(here, lam), reverse_gradient(there, lam))

    return judged(aligned(strategy_of(strategy), "adversarial", target, 1.0, term), hidden, rate)


def judged(plan: Strategy, hidden: int, rate: int | float) -> Strategy:
    """The strategy, with a discriminator in the model while the run lasts. The strategy itself never sees it."""
    def insert(model: Model, seed: int) -> None:
        plan.insert(model, seed)
        with Unfilled():
            judge = Discriminator(model.config.d_model, hidden)
        initialise(judge, model.config, torch.Generator().manual_seed(seed))
        model.add_module(JUDGE, judge.to(model.device))

    def with_judge(model: Model, ask: Callable[[], Iterable[str]]) -> list[str]:
        own = [f"{JUDGE}.{name}" for name, _ in model.get_submodule(JUDGE).named_parameters()]
        with without_discriminator(model):
            return [*ask(), *own]

    def rates(model: Model) -> Callable[[str], float]:
        with without_discriminator(model):
            of_plan = plan.rate(model)
        return lambda name: rate if name.startswith(f"{JUDGE}.") else of_plan(name)

    @contextmanager
    def during(model: Model, batches: Iterable[dict[str, Tensor]]) -> Iterator[None]:
        try:
            with plan.during(model, batches):
                yield
        finally:
            model._modules.pop(JUDGE)

    def save(model: Model, folder: Path) -> None:
        with without_discriminator(model):
            plan.save(model, folder)

    now = plan.now
    return replace(plan, insert=insert, trains=lambda model: with_judge(model, lambda: plan.trains(model)), rate=rates, during=during, save=save,
                   now=None if now is None else lambda model, epochs: with_judge(model, lambda: now(model, epochs)))
