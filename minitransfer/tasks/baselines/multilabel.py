"""Any number of labels for a whole text: a yes or no of each, learned for itself."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from ..metrics import YesNo
from ..multilabel import LabelsPrediction, sets_of_labels
from .base import Given, Kind
from .sequence import logistic, svm
from .texts import LearnScores, Scores, averaged, naive_bayes, of_texts, recurrent, tf_idf


def answers(given: Given, rows: Sequence[dict]) -> np.ndarray:
    """1 for yes, (N, n) float32."""
    return np.array([[name in names for name in given.labels] for names in sets_of_labels(rows, given.task.label, "a")], np.float32)


def majority(given: Given, texts: Sequence[str], targets: np.ndarray) -> tuple[Scores, int]:
    """Every label that more than half of the training rows have."""
    with np.errstate(divide="ignore"):
        shares = np.log(targets.mean(0)) - np.log1p(-targets.mean(0))
    return lambda asked: np.tile(shares, (len(asked), 1)), len(shares)


def keywords(given: Given, texts: Sequence[str], targets: np.ndarray) -> tuple[Scores, int]:
    learned = [naive_bayes(texts, column, 2) for column in targets.T.astype(int)]
    return lambda asked: np.stack([np.subtract(*scores(asked).T[::-1]) for scores, _ in learned], 1), sum(n for _, n in learned)


def one_by_one(estimator: Callable[[], Any]) -> Any:
    from sklearn.multiclass import OneVsRestClassifier
    return OneVsRestClassifier(estimator())


def read(given: Given, scores: np.ndarray) -> list[LabelsPrediction]:
    each = [dict(zip(given.labels, one, strict=True)) for one in torch.from_numpy(scores).double().sigmoid().tolist()]
    return [LabelsPrediction([name for name, p in one.items() if p > given.task.threshold], one) for one in each]


def measure(given: Given, rows: Sequence[dict], found: list[LabelsPrediction]) -> dict[str, float]:
    counts = YesNo(len(given.labels))
    counts.add(torch.from_numpy(answers(given, rows)) > 0.5, torch.tensor([[name in one.labels for name in given.labels] for one in found]))
    return counts.metrics()


LEARN: dict[str, LearnScores] = {
    "majority": majority, "keywords": keywords, "logistic": tf_idf(partial(one_by_one, partial(logistic, 10.0))), "svm": tf_idf(partial(one_by_one, svm)),
    "vectors": averaged(partial(one_by_one, partial(logistic, 1.0))), "bilstm": recurrent(binary_cross_entropy_with_logits, lambda given: len(given.labels))}
KIND = Kind({name: of_texts(learn, answers, read) for name, learn in LEARN.items()}, measure)
