"""Texts as features, and what learns numbers from them: the part that one label, several labels and a number have in common."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .base import WORD, Given, Learn, mean_vectors, words
from .bilstm import Loss, bilstm

Scores = Callable[[Sequence[str]], np.ndarray]                              # texts -> (N, n): logits, or the number itself
LearnScores = Callable[[Given, Sequence[str], np.ndarray], tuple[Scores, int]]      # of texts and their targets, (N,) or (N, n)


def joined(task: Any, rows: Sequence[dict]) -> list[str]:
    """The text of each row; of a pair, both texts as one."""
    return [" ".join(str(row[name]) for name in task.asks) for row in rows]


def of_texts(learn: LearnScores, targets: Callable[[Given, Sequence[dict]], np.ndarray], read: Callable[[Given, np.ndarray], list]) -> Learn:
    """A baseline that gives each text some numbers, of which `read` makes predictions."""
    def learned(given: Given, rows: Sequence[dict]) -> tuple[Callable[[Sequence[dict]], list], int]:
        scores, parameters = learn(given, joined(given.task, rows), targets(given, rows))
        return lambda asked: read(given, scores(joined(given.task, asked))), parameters
    return learned


def tf_idf(estimator: Callable[[], Any]) -> LearnScores:
    """TF-IDF of words and word pairs, logarithmic counts, and a linear model."""
    def learn(given: Given, texts: Sequence[str], targets: np.ndarray) -> tuple[Scores, int]:
        from sklearn.feature_extraction.text import TfidfVectorizer
        count = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(texts)
        return fitted(estimator(), count.transform, texts, targets)
    return learn


def averaged(estimator: Callable[[], Any]) -> LearnScores:
    """The mean of the static vectors of a text's words, each dimension to mean 0 and deviation 1, and a linear model."""
    def learn(given: Given, texts: Sequence[str], targets: np.ndarray) -> tuple[Scores, int]:
        from sklearn.preprocessing import StandardScaler
        vectors = given.vectors
        assert vectors is not None
        scale = StandardScaler().fit(mean_vectors(texts, vectors))
        return fitted(estimator(), lambda asked: scale.transform(mean_vectors(asked, vectors)), texts, targets)
    return learn


def fitted(estimator: Any, encode: Callable[[Sequence[str]], Any], texts: Sequence[str], targets: np.ndarray) -> tuple[Scores, int]:
    """Margins, as logits, where the model has them; of two classes the margin is the logit of the second."""
    estimator.fit(encode(texts), targets)
    answer = getattr(estimator, "decision_function", estimator.predict)
    parts = getattr(estimator, "estimators_", [estimator])
    n = sum(np.size(getattr(one, name, ())) for one in parts for name in ("coef_", "intercept_"))
    return lambda asked: np.asarray(answer(encode(asked))).reshape(len(asked), -1), n


def recurrent(loss: Loss, d_out: Callable[[Given], int]) -> LearnScores:
    """A BiLSTM whose outputs are the largest each of its units gives anywhere in the text."""
    def learn(given: Given, texts: Sequence[str], targets: np.ndarray) -> tuple[Scores, int]:
        answer, parameters = bilstm(given, [spoken(text) for text in texts], list(torch.from_numpy(targets)), d_out(given), loss)
        return lambda asked: torch.stack(answer([spoken(text) for text in asked])).double().numpy(), parameters
    return learn


def spoken(text: str) -> list[str]:
    return WORD.findall(text) or [""]


def naive_bayes(texts: Sequence[str], classes: np.ndarray, n: int) -> tuple[Scores, int]:
    """score(class) = log p(class) + sum over the words of a text of log p(word | class), counts + 1: naive Bayes with one vote a word.

    Source: Maron 1961, "Automatic Indexing"; Wang & Manning 2012 (words counted once) find it hard to beat on short texts.
    """
    counts = [Counter[str]() for _ in range(n)]
    for text, k in zip(texts, classes.tolist(), strict=True):
        counts[k].update(words(text))
    known = sorted(set().union(*counts))
    table = np.array([[count[word] + 1.0 for word in known] for count in counts])               # (n, words)
    votes, place = np.log(table / table.sum(1, keepdims=True)), {word: i for i, word in enumerate(known)}
    with np.errstate(divide="ignore"):
        prior = np.log(np.bincount(classes, minlength=n) / len(classes))

    def scores(asked: Sequence[str]) -> np.ndarray:
        found = [[place[word] for word in words(text) if word in place] for text in asked]
        return np.stack([prior + votes[:, places].sum(1) for places in found])
    return scores, votes.size + prior.size
