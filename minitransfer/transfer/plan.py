"""What a strategy is going to do, before anything is computed: at which step which parameters train, and at which learning rate."""
from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..nn.model import Model
from ..report import Table
from .base import Strategy
from .groups import layer_groups, short_list
from .strategies import strategy as strategy_of

COLUMNS = 7         # steps that a printed plan shows at least, if the run has so many


@dataclass(frozen=True)
class PlanRow:
    """Parameters of one layer group that always train together and at one rate; `rates` (steps,) are NaN where they are frozen."""

    group: str
    parameters: int
    names: tuple[str, ...]
    rates: np.ndarray

    @property
    def parts(self) -> str:
        """What tells these parameters from the others of their group: the last part of their names."""
        return ", ".join(sorted({"adapters" if ".adapters." in name else name.rpartition(".")[2] for name in self.names}))


@dataclass(frozen=True, repr=False)
class Plan(Table):
    """Learning rates, layer group by step. Prints as a table of the steps at which something changes; `draw` gives the whole as a figure."""

    strategy: str
    steps: int
    rows: tuple[PlanRow, ...]
    note: str = ""          # of a strategy that thaws with the epochs: how many were assumed, and what never trains in them

    @property
    def rates(self) -> np.ndarray:
        """(rows, steps): the learning rate of each row at each step, NaN where it is frozen."""
        return np.stack([row.rates for row in self.rows])

    @property
    def frozen(self) -> np.ndarray:
        """(rows, steps), bool."""
        return np.isnan(self.rates)

    def shown_steps(self) -> list[int]:
        """The first step, the last, the one with the highest rate, those at which something freezes or thaws, and some between."""
        changes = [step for step in range(1, self.steps) if (self.frozen[:, step] != self.frozen[:, step - 1]).any()]
        peaks = np.where(self.frozen, -1.0, self.rates).max(0)
        shown = sorted({0, self.steps - 1, int(peaks.argmax()), *changes})
        while len(shown) < min(COLUMNS, self.steps):
            a, b = max(pairwise(shown), key=lambda pair: pair[1] - pair[0])
            shown = sorted({*shown, (a + b) // 2})
        return shown

    def cells(self) -> list[list[str]]:
        shown = self.shown_steps()
        of_group = Counter(row.group for row in self.rows)
        names = [row.group if of_group[row.group] == 1 else f"{row.group}: {row.parts}" for row in self.rows]
        body = [[name, f"{row.parameters:,}", *("frozen" if np.isnan(row.rates[s]) else f"{row.rates[s]:.2e}" for s in shown)]
                for name, row in zip(names, self.rows, strict=True)]
        return [["group", "parameters", *(f"step {s + 1}" for s in shown)], *body]

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *([self.note] if self.note else [])])

    def draw(self, axes: Any = None) -> Any:
        """The learning rates over the steps, with gaps where it is frozen: one line for all layer groups that have the same. Returns: matplotlib's axes, new
        ones if none are given.

        Raises: ImportError without matplotlib.
        """
        try:
            from matplotlib import colormaps
            from matplotlib.figure import Figure
        except ImportError as e:
            raise ImportError("a plan is drawn with matplotlib, which is not installed; print(plan) needs nothing: pip install matplotlib to draw it") from e
        axes = Figure(figsize=(8, 4.5), layout="constrained").add_subplot() if axes is None else axes
        alike: dict[bytes, list[PlanRow]] = {}
        for row in self.rows:
            alike.setdefault(row.rates.tobytes(), []).append(row)
        for i, rows in enumerate(alike.values()):
            rates, name = rows[0].rates, short_list(list(dict.fromkeys(row.group for row in rows)))
            frozen, colour = bool(np.isnan(rates).all()), colormaps["viridis"](0.9 * i / max(1, len(alike) - 1))      # the last tenth is pale yellow
            axes.plot(np.arange(1, self.steps + 1), rates, color="lightgrey" if frozen else colour, label=f"{name} (frozen)" if frozen else name,
                      marker="." if self.steps == 1 else None)
        axes.set(xlabel="step", ylabel="learning rate", title=f"strategy {self.strategy}", yscale="log")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small", reverse=True)
        return axes


def plan(model: Model, strategy: str | Strategy = "full", steps: int = 100, epochs: int | float = 3, **settings: Any) -> Plan:
    """What `finetune(model, ..., strategy=strategy, **settings)` does in a run of so many steps. The model stays as it is: the strategy is applied to a copy.

    The numbers come from the functions the loop itself asks: the strategy's rates and phases, `lr_at`.

    Args:    model: with its task's head on it; epochs: passes over the data that the steps make up, which is what gradual unfreezing counts.
             settings: of TrainSettings, as in `finetune`.
    Returns: a row for each layer group; several if its parameters train at different rates or times, and one of frozen parameters if there are any.
    Raises:  ValueError for steps or epochs that are not above zero; and what strategies and settings raise.
    """
    from ..training import TrainSettings
    if steps < 1 or not epochs > 0:
        raise ValueError(f"steps={steps}, epochs={epochs}; a plan is of a run that has both: give numbers above zero")
    chosen = strategy_of(strategy)
    given = TrainSettings.for_tuning(chosen.settings, {**settings, "steps": steps})
    twin = copy.deepcopy(model)
    chosen.apply(twin, given.seed)
    return planned(twin, chosen, given, steps, epochs)


def planned(model: Model, strategy: Strategy, settings: Any, steps: int, epochs: int | float) -> Plan:
    """The plan of a run on a model that the strategy has been applied to, before the run or after it. settings: the TrainSettings of the run."""
    from ..training import lr_at
    parameters = dict(model.named_parameters())
    rate = strategy.rate(model)
    factor = {name: float(rate(name)) for name in strategy.trains(model)}
    lr = np.array([lr_at(step, float(steps), settings) for step in range(steps)])
    phases = [strategy.at(model, step / (steps / epochs)) for step in range(steps)] if strategy.now is not None else [set(factor)] * steps
    rows: list[PlanRow] = []
    for group, names in layer_groups(model).items():
        alike: dict[tuple[float, bytes], list[str]] = {}
        for name in names:
            trains = np.array([name in phase for phase in phases]) if name in factor else np.zeros(steps, bool)
            alike.setdefault((factor.get(name, 0.0), trains.tobytes()), []).append(name)
        for (times, when), members in alike.items():
            rates = np.where(np.frombuffer(when, bool), lr * times, np.nan)
            rows.append(PlanRow(group, sum(parameters[name].numel() for name in members), tuple(members), rates))
    note = "" if strategy.now is None else f"epochs assumed: {epochs:g}. {strategy.left_out(model, set().union(*phases), epochs)}".strip()
    return Plan(strategy.name, steps, tuple(rows), note)
