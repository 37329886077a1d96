"""From no labels to all of them: zero-shot, examples in the prompt, tuning on a few rows, LoRA, everything; on one split, with what each point costs."""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from ..nn.heads import EmbeddingHead
from ..nn.model import Model
from ..tasks import Prompt, label_scores, shots
from ..tasks.intervals import ends
from ..text import Tokenizer
from ..transfer.groups import Table
from .tables import Interval, new_axes
from .ways import Ground, Learned, Resampled


@dataclass(frozen=True)
class Rung:
    """One way to answer; its runs differ in the rows that are drawn."""

    name: str
    labels: int                             # rows with a label that are shown or learned from
    accuracy: Interval
    of_full: Interval                       # as a share of what full tuning on all rows gives
    seconds: float                          # of learning, and of answering all held-out rows; means over the runs
    answering: float
    trained: int
    runs: tuple[float, ...]


@dataclass(frozen=True, repr=False)
class Ladder(Table):
    """Ways to answer, from none to all labels. Prints as a table; `draw` shows accuracy over cost."""

    rungs: tuple[Rung, ...]
    held_out: int

    def cells(self) -> list[tuple[str, ...]]:
        head = ("way", "labels", "accuracy", "of full", "seconds to learn", f"to answer {self.held_out:,}", "trained")
        return [head, *((r.name, f"{r.labels:,}", str(r.accuracy), str(r.of_full), f"{r.seconds:.1f}", f"{r.answering:.1f}", f"{r.trained:,}") for r in self.rungs)]

    def draw(self, axes: Any = None) -> Any:
        """Accuracy with its interval over the seconds of learning and answering. Returns: matplotlib's axes."""
        axes = new_axes(7, 4.5)[0, 0] if axes is None else axes
        for rung in self.rungs:
            x, y = rung.seconds + rung.answering, rung.accuracy
            axes.errorbar(x, y.value, [[y.value - y.low], [y.high - y.value]], marker="o", capsize=3, label=f"{rung.name}: {rung.labels:,} labels, {rung.trained:,} trained")
        axes.set(xscale="log", xlabel=f"seconds to learn and to answer {self.held_out:,} rows", ylabel="accuracy", title="from zero labels to all")
        axes.legend(fontsize="small")
        return axes


def ladder(model: Model, tok: Tokenizer, task: Any = "sequence", *, train: Any, validation: Any, words: Mapping[str, str] | Sequence[str] | None = None,
           prompt: Prompt | None = None, examples: Sequence[int] = (4,), few: int = 32, seeds: int = 3, text: str | None = None, pair: str | None = None,
           label: str | None = None, **settings: Any) -> Ladder:
    """Zero-shot, a few examples in the prompt, tuning on a few rows, LoRA and full tuning on all rows, judged by the same held-out rows.

    Args:   model: with a vocabulary or embedding head, which answers without training. A model with an embedding head reads no prompt, and gets no examples.
            train, validation, text, pair, label: as in `finetune`; of a task with one text and one label. words: of each label, as for `label_scores`.
            prompt: its template (its examples are drawn here). examples: how many rows are shown, for each k-shot rung; few: rows of the few-label rung.
            seeds: draws of these rows. settings: of `finetune`, for the rungs that tune.
    Source: Brown et al. 2020, section 2 (zero-shot, few-shot). Intervals: bootstrap over held-out rows and draws.
    Raises: ValueError for a pair task, fewer rows than a rung needs, and what `label_scores` and `finetune` raise.
    """
    ground = Ground.of(model, tok, task, train, validation, text, pair, label)
    if ground.task.pair is not None:
        raise ValueError("a task of pairs; a prompt shows one text: give rows with one text, or put both into it")
    if few > len(ground.train) or max(examples, default=0) > len(ground.train):
        raise ValueError(f"few={few}, examples={tuple(examples)} and {len(ground.train)} training rows; each rung takes its rows from these: ask for fewer, or give more rows")
    told = words if words is not None else ground.names
    asked = prompt or Prompt()
    runs: list[tuple[str, int, list[Learned]]] = [("zero-shot", 0, [scored(ground, told, asked, [])])]
    for k in () if isinstance(model.head, EmbeddingHead) else examples:
        runs.append((f"{k}-shot", k, [scored(ground, told, asked, shots(ground.train, k, seed, ground.task.label)) for seed in range(seeds)]))
    runs.append((f"full, {few} rows", few, [ground.learn("full", ground.draw(few, seed), seed, **settings) for seed in range(seeds)]))
    runs += [(f"{way}, all rows", len(ground.train), [ground.learn(way, ground.train, 0, **settings)]) for way in ("lora", "full")]
    rights = [np.stack([ground.right(one) for one in many]) for _, _, many in runs]
    return Ladder(tuple(rung(name, n, many, right, rights[-1]) for (name, n, many), right in zip(runs, rights, strict=True)), len(ground.held_out))


def scored(ground: Ground, words: Mapping[str, str] | Sequence[str], prompt: Prompt, shown: Sequence[dict]) -> Learned:
    """Answers without training."""
    began, column = time.perf_counter(), ground.task.text
    found = label_scores(ground.model, ground.tok, [row[column] for row in ground.held_out], words,
                         Prompt(prompt.template, shown, prompt.between, column, ground.task.label))
    return Learned([one.label for one in found], 0.0, time.perf_counter() - began, 0)


def rung(name: str, labels: int, many: Sequence[Learned], right: Bool[np.ndarray, "S V"], full: Bool[np.ndarray, "F V"]) -> Rung:
    shares, of = Resampled.of(right), Resampled.of(full)                        # both resample the held-out rows alike
    relative = Interval(float(shares.values / of.values), *ends(shares.draws / of.draws.clip(1e-12))) if of.values > 0 else Interval(0.0, 0.0, 0.0)
    return Rung(name, labels, shares.interval(), relative, float(np.mean([one.seconds for one in many])), float(np.mean([one.answering for one in many])),
                many[0].trained, tuple(right.mean(1).tolist()))
