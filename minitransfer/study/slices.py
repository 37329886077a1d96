"""Where is a model worse than elsewhere? Held-out rows in slices: by length, by label, by a column, or by a function of the row."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np

from ..nn.model import Model
from ..tasks import SequenceTask, predict
from ..tasks.metrics import wilson
from ..tasks.named import check_columns, task_of
from ..tasks.sequence import label_names
from ..text import Tokenizer, read_rows
from ..text.readers import column
from ..transfer.groups import Table
from .tables import Interval, new_axes, signed

BINS = 4                # of length, as many rows in each


@dataclass(frozen=True)
class SliceRow:
    """The rows of one slice. `confidence`: the mean probability of the answers; far above the accuracy, the model does not know that it errs here."""

    name: str
    rows: int
    accuracy: Interval
    confidence: float
    against_rest: Interval      # accuracy here less that of all other rows; the intervals of all slices hold together

    @property
    def verdict(self) -> str:
        return "worse" if self.against_rest.high < 0 else "better" if self.against_rest.low > 0 else ""


@dataclass(frozen=True, repr=False)
class Slices(Table):
    """Slices of held-out rows. Prints as a table; `draw` shows the accuracies."""

    by: str
    rows: tuple[SliceRow, ...]
    overall: Interval

    def cells(self) -> list[tuple[str, ...]]:
        body = [(r.name, f"{r.rows:,}", str(r.accuracy), f"{r.confidence:.3f}", signed(r.against_rest), r.verdict) for r in self.rows]
        return [(self.by, "rows", "accuracy", "confidence", "against the rest", ""), *body, ("all", f"{sum(r.rows for r in self.rows):,}", str(self.overall), "", "", "")]

    def draw(self, axes: Any = None) -> Any:
        """Returns: matplotlib's axes."""
        axes = new_axes(7, 1 + 0.4 * len(self.rows))[0, 0] if axes is None else axes
        value, low, high = np.array([row.accuracy for row in self.rows]).T
        axes.errorbar(value, range(len(self.rows)), xerr=[value - low, high - value], fmt="o", capsize=3, label="accuracy")
        axes.plot([row.confidence for row in self.rows], range(len(self.rows)), "x", color="grey", label="confidence")
        axes.axvline(self.overall.value, linestyle="--", linewidth=1, color="grey")
        axes.set(yticks=range(len(self.rows)), yticklabels=[f"{row.name} ({row.rows:,})" for row in self.rows], title=f"by {self.by}")
        axes.legend(fontsize="small")
        return axes


def difference(a: tuple[int, int], b: tuple[int, int], z: float) -> Interval:
    """The difference of two shares, each successes of n, with its interval.

    Source: Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10.
    """
    (p, q), ((low_p, high_p), (low_q, high_q)) = (x / n for x, n in (a, b)), (wilson(x, n, z) for x, n in (a, b))
    return Interval(p - q, p - q - ((p - low_p) ** 2 + (high_q - q) ** 2) ** 0.5, p - q + ((high_p - p) ** 2 + (q - low_q) ** 2) ** 0.5)


def length_bins(lengths: Sequence[int]) -> list[str]:
    """For each row the range of lengths it is in; ranges hold as many rows, as far as equal lengths allow."""
    edges = sorted({int(edge) for edge in np.quantile(lengths, np.linspace(0, 1, BINS + 1)[:-1], method="higher")})
    names = {low: f"{low} to {high - 1} tokens" for low, high in pairwise([*edges, max(lengths) + 1])}
    return [names[max(edge for edge in edges if edge <= n)] for n in lengths]


def slice_names(by: str | Callable[[dict], Any], rows: Sequence[dict], tok: Tokenizer, task: SequenceTask) -> tuple[str, list[str], list[str]]:
    """What it is sliced by, each row's slice, and all slices in order."""
    if by == "length":
        lengths = [sum(len(tok.encode(row[name], specials=False)) for name in task.asks) for row in rows]
        names = length_bins(lengths)
        return "length", names, [name for _, name in sorted({(int(name.split()[0]), name) for name in names})]
    if callable(by):
        title, names = getattr(by, "__name__", "slice").replace("<lambda>", "slice"), [str(by(row)) for row in rows]
    else:
        title, names = by, [str(value) for value in column(rows, task.label if by == "label" else by)]
    return title, names, sorted(set(names))


def slices(model: Model, tok: Tokenizer, rows: Any, by: str | Callable[[dict], Any] = "length", task: Any = "sequence", *, text: str | None = None,
           pair: str | None = None, label: str | None = None, max_length: int | None = None) -> Slices:
    """Accuracy and confidence of a tuned model in slices of held-out rows, each against all other rows.

        slices(model, tok, "reviews.test.tsv", by=lambda row: "not" in row["text"].split())

    Args:   rows, text, pair, label: as in `finetune`; of a task with one label a text. by: "length" (in tokens, quarters of the rows), "label", the name of a column,
            or a function from a row to the name of its slice.
    Source: intervals: Wilson 1927; against the rest Newcombe 1998, at 1 - 0.05 / slices each (Bonferroni), since among many slices one looks bad by chance.
    Raises: ValueError for one slice only, or another kind of task; KeyError for a column that is not there.
    """
    asked = task_of(task, {"text": text, "pair": pair, "label": label})
    if not isinstance(asked, SequenceTask) or asked.name != "sequence":
        raise ValueError(f"task {asked.name!r}; a slice counts the rows whose one label is right: give task=\"sequence\"")
    found = read_rows(rows)
    check_columns(asked, {"": found})
    title, names, order = slice_names(by, found, tok, asked)
    if len(order) < 2:
        raise ValueError(f"by={title!r} puts all {len(found)} rows into one slice, {order[0]!r}; a slice is compared with the rest: choose what tells rows apart")
    texts, *pairs = (column(found, name) for name in asked.asks)
    answers = predict(model, tok, texts, pairs[0] if pairs else None, max_length=max_length, task=asked)
    right = np.array([one.label == truth for one, truth in zip(answers, label_names(found, asked.label, "held-out"), strict=True)])
    sure, z, whose = np.array([one.probability for one in answers]), NormalDist().inv_cdf(1 - 0.025 / len(order)), np.array(names)
    made = []
    for name in order:
        here = whose == name
        x, n = int(right[here].sum()), int(here.sum())
        made.append(SliceRow(name, n, Interval(x / n, *wilson(x, n)), float(sure[here].mean()), difference((x, n), (int(right[~here].sum()), int((~here).sum())), z)))
    return Slices(title, tuple(made), Interval(float(right.mean()), *wilson(int(right.sum()), len(right))))
