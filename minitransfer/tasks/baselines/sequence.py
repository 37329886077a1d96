"""One label for a whole text."""
from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from ..auc import Auc
from ..metrics import Confusion
from ..sequence import Prediction, label_names
from .base import Given, Kind
from .texts import LearnScores, Scores, averaged, naive_bayes, of_texts, recurrent, tf_idf


def numbers(given: Given, rows: Sequence[dict]) -> np.ndarray:
    """The number of each row's label, (N,)."""
    return np.array([given.labels.index(name) for name in label_names(rows, given.task.label, "a")])


def majority(given: Given, texts: Sequence[str], classes: np.ndarray) -> tuple[Scores, int]:
    shares = np.log(np.bincount(classes, minlength=len(given.labels)) / len(classes))
    return lambda asked: np.tile(shares, (len(asked), 1)), 1


def keywords(given: Given, texts: Sequence[str], classes: np.ndarray) -> tuple[Scores, int]:
    return naive_bayes(texts, classes, len(given.labels))


def logistic(c: float) -> Any:
    from sklearn.linear_model import LogisticRegression
    return LogisticRegression(C=c, max_iter=1000)


def svm() -> Any:
    from sklearn.svm import LinearSVC
    return LinearSVC()


def read(given: Given, scores: np.ndarray) -> list[Prediction]:
    logits = torch.from_numpy(scores).double()
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    p = logits.softmax(1)                                                           # (N, n)
    return [Prediction(given.labels[best], float(one[best]), dict(zip(given.labels, one.tolist(), strict=True))) for one, best in zip(p, p.argmax(1).tolist(), strict=True)]


def measure(given: Given, rows: Sequence[dict], answers: list[Prediction]) -> dict[str, float]:
    truth, confusion = torch.from_numpy(numbers(given, rows)), Confusion(len(given.labels))
    confusion.add(truth, torch.tensor([given.labels.index(one.label) for one in answers]))
    if len(given.labels) != 2:
        return confusion.metrics()
    auc, p = Auc(), torch.tensor([list(one.probabilities.values()) for one in answers], dtype=torch.double).clamp(min=1e-300).log()
    auc.add(truth, p[:, 1] - p[:, 0])
    return confusion.metrics() | auc.metrics()


LEARN: dict[str, LearnScores] = {
    "majority": majority, "keywords": keywords, "logistic": tf_idf(partial(logistic, 10.0)), "svm": tf_idf(svm), "vectors": averaged(partial(logistic, 1.0)),
    "bilstm": recurrent(cross_entropy, lambda given: len(given.labels))}
KIND = Kind({name: of_texts(learn, numbers, read) for name, learn in LEARN.items()}, measure)
