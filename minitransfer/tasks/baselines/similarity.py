"""How alike two texts are, from the words they have in common. Nothing is learned from the scores."""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..metrics import Numbers
from ..regression import NumberPrediction
from .base import Answer, Given, Kind, Learn, mean_vectors, words

Alike = Callable[[Sequence[str], Sequence[str]], np.ndarray]                # two texts each -> (N,)


def of_pairs(learn: Callable[[Given, Sequence[str]], tuple[Alike, int]]) -> Learn:
    """A baseline that is prepared with all training texts; its answers are times `highest`, as the task's are."""
    def learned(given: Given, rows: Sequence[dict]) -> tuple[Answer, int]:
        alike, parameters = learn(given, [text for side in sides(given, rows) for text in side])
        return lambda asked: [NumberPrediction(float(value) * given.task.highest) for value in alike(*sides(given, asked))], parameters
    return learned


def sides(given: Given, rows: Sequence[dict]) -> tuple[list[str], list[str]]:
    return [str(row[given.task.text]) for row in rows], [str(row[given.task.pair]) for row in rows]


def overlap(given: Given, texts: Sequence[str]) -> tuple[Alike, int]:
    """The words both texts have, of those that either has. Source: Jaccard 1912."""
    def alike(first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        return np.array([len(a & b) / max(len(a | b), 1) for a, b in zip(map(words, first), map(words, second), strict=True)])
    return alike, 0


def tf_idf(given: Given, texts: Sequence[str]) -> tuple[Alike, int]:
    """The cosine of the texts' TF-IDF vectors of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    count = TfidfVectorizer(sublinear_tf=True).fit(texts)

    def alike(first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        return np.asarray(count.transform(first).multiply(count.transform(second)).sum(1)).ravel()     # rows have length 1, or 0
    return alike, len(count.idf_)


def vectors(given: Given, texts: Sequence[str]) -> tuple[Alike, int]:
    """The cosine of the means of the words' static vectors; 0 where a text has none."""
    static = given.vectors
    assert static is not None

    def alike(first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        a, b = (mean_vectors(side, static) for side in (first, second))
        return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)
    return alike, 0


def measure(given: Given, rows: Sequence[dict], answers: list[NumberPrediction]) -> dict[str, float]:
    numbers, found = Numbers(), torch.tensor([one.value for one in answers]) / given.task.highest
    numbers.add(given.task.scores(rows, "validation"), found)
    return numbers.metrics()


KIND = Kind({"overlap": of_pairs(overlap), "tf_idf": of_pairs(tf_idf), "vectors": of_pairs(vectors)}, measure)
