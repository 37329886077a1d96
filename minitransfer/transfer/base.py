"""What a way to adapt a model is: a few facts and functions, read by `finetune`. A new one is a page that returns one of these; no loop changes."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..nn.model import Model
from ..objectives import Objective
from .groups import TrainableReport, fresh_names, layer_groups, set_trainable, short_list, trainable_report


def nothing(model: Model, seed: int) -> None:
    """Inserts nothing."""


def one_rate(model: Model) -> Callable[[str], float]:
    """Every parameter at the run's learning rate."""
    return lambda name: 1.0


def with_gentle_pooler(lr: float) -> Callable[[Model], Callable[[str], float]]:
    """Every parameter at the run's learning rate, but a pooler that starts fresh at 1e-3 where the rate is `lr`: at rates that suit a head alone or a
    prefix its tanh is soon at its ends, where all texts look alike."""
    def rate(model: Model) -> Callable[[str], float]:
        fresh = {name for name in fresh_names(model) if name.startswith("pooler.")}
        return lambda name: 1e-3 / lr if name in fresh else 1.0
    return rate


def unchanged(model: Model, objective: Objective) -> Objective:
    """The task's own loss."""
    return objective


def nothing_else(model: Model, batches: Iterable[dict[str, Tensor]]) -> AbstractContextManager:
    """The run goes on as it is."""
    return nullcontext()


@dataclass(frozen=True, repr=False)
class Strategy:
    """A way to adapt a model.

    Args: trains:    model -> the names of the parameters that train at some time of the run. All others are frozen and in no optimizer.
          insert:    (model, seed) -> puts modules in. Called once, on a loaded model with its head in place, before `trains`.
          rate:      model -> (name of a parameter -> what the learning rate is multiplied by for it).
          now:       (model, epochs done) -> the names, out of `trains`, that train from here on; None: all of them, always. A pure function of
                     both, so that a run can be resumed; what joins late starts with fresh moments.
          objective: (model, the task's objective) -> the objective to train on: a penalty added, another batch mixed in.
          during:    (model, every batch of an epoch and of the evaluation) -> what holds while the run lasts and is undone after it.
          ahead:     how many positions of every text it takes for itself, as a prefix does.
          lm_epochs: passes over the texts of the task on which the language model is tuned first, before the task's head is put on the body.
          settings:  of TrainSettings, used where the caller says nothing.
          save:      (model, folder) -> writes what a user needs beside the base.
    """

    name: str
    trains: Callable[[Model], Iterable[str]]
    insert: Callable[[Model, int], object] = nothing
    rate: Callable[[Model], Callable[[str], float]] = one_rate
    now: Callable[[Model, float], Iterable[str]] | None = None
    objective: Callable[[Model, Objective], Objective] = unchanged
    during: Callable[[Model, Iterable[dict[str, Tensor]]], AbstractContextManager] = nothing_else
    ahead: int = 0
    lm_epochs: int | float = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    save: Callable[[Model, Path], None] = Model.save_pretrained

    def __repr__(self) -> str:
        return f"<strategy {self.name}, settings {dict(self.settings)}>"

    def apply(self, model: Model, seed: int = 0) -> TrainableReport:
        """Insert, and freeze what does not train. Returns: the report of what does.

        Raises: ValueError if nothing trains.
        """
        self.insert(model, seed)
        set_trainable(model, set(self.trains(model)))
        report = trainable_report(model)
        if report.trainable == 0:
            raise ValueError(f"strategy {self.name!r} leaves nothing to train in a model with head={model.head_name!r}: "
                             "put a task's head on it with set_head, or choose a strategy that trains the body")
        return report

    def left_out(self, model: Model, trained: set[str], epochs: int | float) -> str:
        """The sentence about the layer groups that were to train and never did in a run of so many epochs; "" if there are none."""
        missing = set(self.trains(model)) - trained
        groups = [group for group, names in layer_groups(model).items() if missing & set(names)]
        needed = next((n for n in range(1, 1000) if missing <= self.at(model, float(n))), None)
        return "" if not groups else (f"{short_list(groups)} never trained: with {self.name} all have thawed after {needed} epochs, and this run has {epochs:g}: "
                                      f"give epochs={(needed or 0) + 1}, or a strategy that thaws more with each, as ulmfit(per_epoch=...) does")

    def at(self, model: Model, epochs: float) -> set[str]:
        """The names of the parameters that train from the time on when so many epochs are done."""
        return set(self.trains(model) if self.now is None else self.now(model, epochs))
