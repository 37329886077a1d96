"""A number for a whole text."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import mse_loss

from ..metrics import Numbers
from ..regression import NumberPrediction, numbers_of
from .base import Given, Kind
from .texts import LearnScores, Scores, averaged, of_texts, recurrent, tf_idf


def values(given: Given, rows: Sequence[dict]) -> np.ndarray:
    return numbers_of(rows, given.task.label, "a").numpy()                          # (N,)


def mean(given: Given, texts: Sequence[str], targets: np.ndarray) -> tuple[Scores, int]:
    return lambda asked: np.full((len(asked), 1), targets.mean()), 1


def ridge() -> Any:
    from sklearn.linear_model import Ridge
    return Ridge()


def bilstm(given: Given, texts: Sequence[str], targets: np.ndarray) -> tuple[Scores, int]:
    """It learns numbers of mean 0 and deviation 1, and answers in the unit of the rows."""
    centre, spread = targets.mean(), targets.std()
    scores, parameters = recurrent(mse_loss, lambda given: 1)(given, texts, ((targets - centre) / spread)[:, None])
    return lambda asked: scores(asked) * spread + centre, parameters


def read(given: Given, scores: np.ndarray) -> list[NumberPrediction]:
    return [NumberPrediction(float(value)) for value in scores[:, 0]]


def measure(given: Given, rows: Sequence[dict], answers: list[NumberPrediction]) -> dict[str, float]:
    numbers = Numbers()
    numbers.add(numbers_of(rows, given.task.label, "a"), torch.tensor([one.value for one in answers]))
    return numbers.metrics()


LEARN: dict[str, LearnScores] = {"mean": mean, "ridge": tf_idf(ridge), "vectors": averaged(ridge), "bilstm": bilstm}
KIND = Kind({name: of_texts(learn, values, read) for name, learn in LEARN.items()}, measure)
