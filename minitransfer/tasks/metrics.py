"""Metrics: of classes from counts that do not grow with the number of rows, of numbers from the numbers."""
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .intervals import Bootstrap, ends, redrawn, resampled, with_interval

Z95 = 1.959963984540054     # the standard normal distribution holds 95 % between -Z95 and Z95


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """The interval in which the true rate lies, for `successes` out of `n`; 95 % unless told. It stays inside [0, 1] and is no point at 0 or n.

    ((p + z^2 / 2n) +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)        p = successes / n

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    return low if successes else 0.0, high if successes < n else 1.0               # exact where rounding would miss the end


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """How often two classifiers that are equally good differ on the same rows at least as much as these, which were right in rows `a` and in rows `b`.

    Of the n rows where one of them alone is right, either is right in a Binomial(n, 1/2) of them; two-sided and exact.
    Source: McNemar 1947, "Note on the sampling error of the difference between correlated proportions or percentages".
    """
    only_a, only_b = (sum(x and not y for x, y in zip(*pair, strict=True)) for pair in ((a, b), (b, a)))
    n = only_a + only_b
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n)


class Confusion:
    """How often label i was answered with label j, and what follows from it."""

    def __init__(self, n_labels: int):
        self.counts: Int[Tensor, "n n"] = torch.zeros(n_labels, n_labels, dtype=torch.long)      # (truth, answer)

    def add(self, truth: Int[Tensor, "N"], answer: Int[Tensor, "N"]) -> None:
        n = len(self.counts)
        self.counts += torch.bincount(truth.cpu() * n + answer.cpu(), minlength=n * n).view(n, n)

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    @property
    def right(self) -> int:
        return int(self.counts.diagonal().sum())

    def accuracy(self) -> float:
        return self.right / max(self.n, 1)

    def f1(self) -> float:
        return float(macro_f1(*self.per_label(self.counts.double())))

    def matthews(self) -> float:
        return float(matthews(*self.per_label(self.counts.double())))

    def per_label(self, counts: Float[Tensor, "n n"]) -> tuple[Tensor, Tensor, Tensor]:
        """How often each label was right, true and answered, (n,) each."""
        return counts.diagonal(), counts.sum(1), counts.sum(0)

    def redrawn(self) -> tuple[Tensor, Tensor, Tensor]:
        """`per_label` of resamples of the decisions, (R, n) each. A decision is a cell of the table, so the table is all that resampling needs."""
        truth, answer = self.counts.nonzero(as_tuple=True)                          # (C,), (C,)
        draws = torch.from_numpy(resampled(self.counts[truth, answer].numpy()))     # (R, C)
        is_truth, is_answer = (torch.eye(len(self.counts), dtype=torch.double)[labels] for labels in (truth, answer))      # (C, n)
        return draws @ (is_truth * is_answer), draws @ is_truth, draws @ is_answer

    def metrics(self) -> dict[str, float]:
        """accuracy (interval: Wilson's), f1 (mean over labels) and matthews (bootstrap), each with the ends of its 95 % interval, and the number of targets."""
        found = with_interval("accuracy", self.accuracy(), wilson(self.right, self.n))
        draws = self.redrawn() if self.n else None
        for name, value, metric in (("f1", self.f1(), macro_f1), ("matthews", self.matthews(), matthews)):
            found |= with_interval(name, value, (0.0, 0.0) if draws is None else ends(metric(*draws).numpy()))
        return found | {"n": float(self.n)}


SHOWN = ("accuracy", "f1", "matthews", "auc", "f1_micro", "entity_f1", "entity_f1_lenient", "pearson", "spearman", "exact")


def shown(metrics: dict[str, float]) -> str:
    """The metrics that are quoted, with their intervals, as a part of a sentence."""
    found = [f"{name} {value:.4f}" + (f" (95 %: {metrics[f'{name}_low']:.4f} to {metrics[f'{name}_high']:.4f})" if f"{name}_low" in metrics else "")
             for name, value in metrics.items() if name in SHOWN]
    return f"{', '.join(found)} on {metrics['n']:.0f} held-out targets"


def macro_f1(right: Float[Tensor, "*R n"], truth: Float[Tensor, "*R n"], answer: Float[Tensor, "*R n"]) -> Float[Tensor, "*R"]:
    """The mean over labels of 2 TP / (2 TP + FP + FN); labels that neither occur nor were answered are left out."""
    asked = truth + answer
    return (2 * right / asked.clamp(min=1)).sum(-1) / (asked > 0).sum(-1).clamp(min=1)


def matthews(right: Float[Tensor, "*R n"], truth: Float[Tensor, "*R n"], answer: Float[Tensor, "*R n"]) -> Float[Tensor, "*R"]:
    """The correlation of truth and answer, in [-1, 1]; 0 if either is always the same label.

    (c s - sum_k p_k t_k) / sqrt((s^2 - sum_k p_k^2) (s^2 - sum_k t_k^2))      c right, s all, t_k true and p_k answered counts of label k

    Source: Matthews 1975; for more than two labels Gorodkin 2004, equation 8.
    """
    s = truth.sum(-1)
    below = ((s * s - answer.square().sum(-1)) * (s * s - truth.square().sum(-1))).sqrt()
    return torch.where(below > 0, (right.sum(-1) * s - (truth * answer).sum(-1)) / below.clamp(min=1e-300), 0.0)


class YesNo:
    """n questions answered with yes or no for each text: counts per label, and how many texts had every answer right."""

    def __init__(self, n_labels: int):
        self.sums = Bootstrap(3 * n_labels)                                         # right, true and answered yeses of each label
        self.texts = self.exact = 0

    def add(self, truth: Bool[Tensor, "N n"], answer: Bool[Tensor, "N n"]) -> None:
        truth, answer = truth.cpu(), answer.cpu()
        self.sums.add(torch.cat([truth & answer, truth, answer], 1).numpy())
        self.texts += len(truth)
        self.exact += int((truth == answer).all(1).sum())

    def metrics(self) -> dict[str, float]:
        """f1 over all answers (micro) and its mean over labels, with bootstrap intervals; the share of texts whose every answer is right, with Wilson's, as accuracy."""
        def micro(sums: np.ndarray) -> np.ndarray:
            return macro_f1(*(one.sum(-1, keepdim=True) for one in torch.from_numpy(sums).chunk(3, -1))).numpy()

        def macro(sums: np.ndarray) -> np.ndarray:
            return macro_f1(*torch.from_numpy(sums).chunk(3, -1)).numpy()
        found = with_interval("accuracy", self.exact / max(self.texts, 1), wilson(self.exact, self.texts)) | {"n": float(self.texts)}
        return found | self.sums.metrics({"f1_micro": micro, "f1": macro})


class Numbers:
    """True and predicted numbers. A correlation of ranks needs all of them at once: 16 bytes a row are kept."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []

    def add(self, truth: Float[Tensor, "N"], answer: Float[Tensor, "N"]) -> None:
        self.parts.append(torch.stack([truth, answer]).double().cpu().numpy())

    def metrics(self) -> dict[str, float]:
        """mse, mae, pearson and spearman, each with its bootstrap interval."""
        truth, answer = np.concatenate(self.parts, 1)                               # (N,), (N,)
        found = {"n": float(len(truth))}
        for name, metric in (("mse", squared_error), ("mae", absolute_error), ("pearson", pearson), ("spearman", spearman)):
            found |= with_interval(name, metric(truth, answer), redrawn(metric, truth, answer))
        return found


def squared_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.square(a - b).mean())


def absolute_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """sum (a - mean a)(b - mean b) / sqrt(sum (a - mean a)^2 sum (b - mean b)^2); 0 if either is constant, where it is not defined."""
    if a.min() == a.max() or b.min() == b.max():
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def ranks(values: np.ndarray) -> np.ndarray:
    """1 for the smallest; equal values share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of ranks."""
    return pearson(ranks(a), ranks(b))
