"""Metrics of a classification, from counts that grow with the number of classes and not with the number of rows."""
from __future__ import annotations

import math

import torch
from jaxtyping import Int
from torch import Tensor

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
        """The mean over labels of 2 TP / (2 TP + FP + FN); labels that neither occur nor were answered are left out."""
        tp, asked = self.counts.diagonal().double(), (self.counts.sum(0) + self.counts.sum(1)).double()
        seen = asked > 0
        return float((2 * tp[seen] / asked[seen]).mean()) if seen.any() else 0.0

    def matthews(self) -> float:
        """The correlation of truth and answer, in [-1, 1]; 0 if either is always the same label.

        (c s - sum_k p_k t_k) / sqrt((s^2 - sum_k p_k^2) (s^2 - sum_k t_k^2))      c right, s all, t_k true and p_k answered counts of label k

        Source: Matthews 1975; for more than two labels Gorodkin 2004, equation 8.
        """
        truth, answer = self.counts.sum(1).double(), self.counts.sum(0).double()
        s = float(self.n)
        below = math.sqrt((s * s - float(answer @ answer)) * (s * s - float(truth @ truth)))
        return (self.right * s - float(truth @ answer)) / below if below else 0.0

    def metrics(self) -> dict[str, float]:
        """accuracy with the ends of its 95 % interval, f1 (mean over labels), matthews, and the number of targets."""
        low, high = wilson(self.right, self.n)
        return {"accuracy": self.accuracy(), "accuracy_low": low, "accuracy_high": high, "f1": self.f1(), "matthews": self.matthews(),
                "n": float(self.n)}
