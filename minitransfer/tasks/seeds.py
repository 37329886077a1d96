"""One run is an anecdote: the same configuration with several seeds, and two configurations compared seed by seed."""
from __future__ import annotations

import copy
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..nn.given import need_model
from ..nn.model import Model
from ..text import Tokenizer
from ..training import ranks
from ..weights.files import read_json, write_json
from .finetune import FinetuneResult, finetune
from .named import task_of

SIGNALS = ("matthews", "pearson", "f1_micro", "f1")
FILE = "seeds.json"


@dataclass(frozen=True, repr=False)
class Seeds:
    """What each seed gave, in the order of the seeds; prints as a sentence.

    A run that learned nothing is degenerate: named, and left in the mean. One of `SIGNALS` is exactly 0 then: it always says the same label or number
    (matthews, pearson), no label at all (f1_micro), or has no word of an answer right (f1).
    """

    metric: str
    seeds: list[int]
    runs: list[dict[str, float]]

    @property
    def values(self) -> list[float]:
        return [run[self.metric] for run in self.runs]

    @property
    def mean(self) -> float:
        return statistics.mean(self.values)

    @property
    def deviation(self) -> float:
        """The sample standard deviation, with n - 1; 0 for one run."""
        return statistics.stdev(self.values) if len(self.runs) > 1 else 0.0

    @property
    def degenerate(self) -> list[int]:
        """The seeds of runs that learned nothing. Source: Mosbach et al. 2021, "On the Stability of Fine-tuning BERT"."""
        return [seed for seed, run in zip(self.seeds, self.runs, strict=True) if next((run[name] for name in SIGNALS if name in run), None) == 0.0]

    @property
    def spread(self) -> dict[str, Any]:
        """All of this as one dict, for files."""
        return {"metric": self.metric, "seeds": self.seeds, "mean": self.mean, "deviation": self.deviation, "degenerate": self.degenerate, "runs": self.runs}

    @classmethod
    def of_folder(cls, folder: str | Path) -> Seeds:
        """What `finetune_seeds` wrote into its `out`. Raises: ValueError for a folder without it."""
        place = Path(folder) / FILE
        if not place.is_file():
            raise ValueError(f"{folder} holds no {FILE}; it is written when several seeds are run with out={folder}: check the path, or run them")
        told = read_json(place)
        return cls(told["metric"], told["seeds"], told["runs"])

    def __str__(self) -> str:
        text = f"{self.metric} {self.mean:.4f} +- {self.deviation:.4f} over {len(self.seeds)} seeds ({', '.join(f'{v:.4f}' for v in self.values)})"
        return text + (f"; degenerate, nothing was learned: seed {', '.join(map(str, self.degenerate))}" if self.degenerate else "")

    __repr__ = __str__


def finetune_seeds(model: Model, tok: Tokenizer, task: Any = "sequence", *, seeds: int | Sequence[int] = 5, metric: str | None = None,
                   out: str | Path | None = None, on_run: Callable[[FinetuneResult], None] | None = None, **arguments: Any) -> Seeds:
    """`finetune` once for each seed, every time from a copy of the model as it is now.

    The seed draws the new head, the order of the rows and the dropout. The rows are the same.

    Args:    seeds: how many (0, 1, ...), or which. metric: of the validation rows; None: the one that picks the weights to keep.
             out: the folder for out/seed-0, out/seed-1, ..., one run each, and seeds.json, which `Seeds.of_folder` reads.
             on_run: sees each result, before the next run. arguments: those of `finetune`; validation is needed.
    Raises:  ValueError for no seed, no validation rows, or a metric that the task does not have; and what `finetune` raises.
    """
    need_model(model, "finetune_seeds")
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not chosen or arguments.get("validation") is None:
        raise ValueError(f"seeds={seeds} and validation={arguments.get('validation')}; runs are compared on held-out rows: give at least one seed, and validation=")
    if "seed" in arguments:
        raise ValueError(f"seed={arguments['seed']} for several runs; each has a seed of its own: leave it out, or name the seeds, seeds=[{arguments['seed']}]")
    metric = metric or task_of(task, {}).best.split()[0]
    runs = []
    for seed in chosen:
        result = finetune(copy.deepcopy(model), tok, task, seed=seed, out=None if out is None else Path(out) / f"seed-{seed}", **arguments)
        if result.training.stopped == "interrupted":
            raise KeyboardInterrupt
        if metric not in result.metrics:
            raise ValueError(f"metric={metric!r}; the task has {', '.join(result.metrics)}: choose one")
        runs.append(result.metrics)
        if on_run is not None:
            on_run(result)
    found = Seeds(metric, chosen, runs)
    if out is not None and ranks.first():
        write_json(Path(out) / FILE, found.spread)
    return found


@dataclass(frozen=True, repr=False)
class Paired:
    """b - a, seed by seed; prints as a sentence."""

    metric: str
    differences: list[float]
    p: float            # how often signs drawn at random give a mean difference at least as large

    @property
    def mean(self) -> float:
        return statistics.mean(self.differences)

    def __str__(self) -> str:
        least = 2 / 2 ** len(self.differences)
        return (f"{self.metric}: {self.mean:+.4f} on average over {len(self.differences)} seeds, p = {self.p:.3g} (paired sign-flip test; "
                f"with so many seeds it cannot be below {least:.3g})")

    __repr__ = __str__


def compare_seeds(a: Seeds, b: Seeds) -> Paired:
    """Is b better than a, or was it the seeds? The exact sign-flip test on the differences.

    If a and b were equally good, each difference would be as likely to have the other sign: p is the share of all 2^k choices of signs for which
    |mean| is at least the one found. Two-sided; needs no normal distribution, and no more than the seeds.

    Source: Fisher 1935, "The Design of Experiments", section 21.
    Raises: ValueError for other seeds, another metric, or more than 20 seeds (2^k choices).
    """
    if a.seeds != b.seeds or a.metric != b.metric:
        raise ValueError(f"{a.metric} of seeds {a.seeds} and {b.metric} of seeds {b.seeds}; a paired test needs pairs: run both with the same seeds and metric")
    if len(a.seeds) > 20:
        raise ValueError(f"{len(a.seeds)} seeds; the exact test goes through 2^k choices of signs: use at most 20")
    differences = np.array(b.values) - np.array(a.values)
    signs = np.array(list(itertools.product((1, -1), repeat=len(differences))))              # (2^k, k)
    means = np.abs(signs @ differences)
    p = float((means >= abs(differences.sum()) - 1e-12).mean())
    return Paired(a.metric, differences.tolist(), p)
