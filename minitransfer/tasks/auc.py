"""The area under the ROC curve, of two labels: how well scores order texts, whatever threshold is chosen afterwards."""
from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .intervals import CHUNK, REPLICATES, ends, resampled, with_interval

CELLS = 1 << 16     # numbers of half precision


class Auc:
    """How often a text of the second label scores higher than one of the first; ties count half.

    P(s+ > s-) + P(s+ = s-) / 2

    Scores are counted at half precision, so memory does not grow with the number of texts, and two scores closer than a part in 2,048 may tie:
    the error is at most half the share of pairs that tie.

    Source: Mann & Whitney 1947; Hanley & McNeil 1982 (the statistic is the area).
    """

    def __init__(self) -> None:
        self.counts: Int[Tensor, "2 C"] = torch.zeros(2, CELLS, dtype=torch.long)

    def add(self, second: Int[Tensor, "N"], score: Float[Tensor, "N"]) -> None:
        """second: 1 for a text of the second label, else 0; score: any number that rises with its probability, best its log-odds."""
        bits = score.cpu().half().view(torch.int16).long()
        cell = torch.where(bits < 0, -(bits & 0x7FFF), bits) + CELLS // 2            # a negative number's bits grow as it falls
        self.counts += torch.bincount(second.cpu() * CELLS + cell, minlength=2 * CELLS).view(2, CELLS)

    def metrics(self) -> dict[str, float]:
        """auc and its bootstrap interval; 0.5 where a label is missing, for which it is not defined."""
        counts = self.counts[:, self.counts.any(0)].double().numpy()                # (2, C)
        if not counts.any(1).all():
            return with_interval("auc", 0.5, (0.0, 1.0))
        part = max(1, CHUNK // counts.size)
        draws = [area(resampled(counts.ravel(), start, min(part, REPLICATES - start)).reshape(-1, *counts.shape)) for start in range(0, REPLICATES, part)]
        return with_interval("auc", float(area(counts)), ends(np.concatenate(draws)))


def area(counts: Float[np.ndarray, "*R 2 C"]) -> Float[np.ndarray, "*R"]:
    """From counts of both labels at rising scores; 0.5 where a label is missing."""
    first, second = counts[..., 0, :], counts[..., 1, :]
    below = first.cumsum(-1) - first / 2
    pairs = first.sum(-1) * second.sum(-1)
    return np.where(pairs > 0, (second * below).sum(-1) / np.maximum(pairs, 1), 0.5)
