"""What a task gives without a network: the figure that any tuned model has to beat. One call each, with the metrics of `finetune`."""
from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..text import read_rows
from .metrics import Confusion
from .sequence import SequenceTask

WORD = re.compile(r"\w+(?:'\w+)?")
Classifier = Callable[[Sequence[str]], list[str]]      # texts -> labels


@dataclass(frozen=True, repr=False)
class Baseline:
    """A classifier of texts, and how it did on the held-out rows; prints as a sentence. `parameters`: numbers it learned."""

    name: str
    classify: Classifier
    metrics: dict[str, float]
    parameters: int
    seconds: float

    def __str__(self) -> str:
        m = self.metrics
        return (f"{self.name}: accuracy {m['accuracy']:.4f} (95 %: {m['accuracy_low']:.4f} to {m['accuracy_high']:.4f}), f1 {m['f1']:.4f} on {m['n']:.0f} "
                f"held-out rows; {self.parameters:,} parameters, {self.seconds:.1f} s")

    __repr__ = __str__


def baseline(name: str, train: Any, validation: Any, text: str = "text", label: str = "label") -> Baseline:
    """Learn from the training rows without a network, and answer the held-out ones.

    Args:    name: "majority": the commonest label; "keywords": the label whose telling words a text has most of, by log-odds; "logistic" and "svm":
             TF-IDF of words and word pairs with logistic regression or a linear support vector machine (scikit-learn, C = 10 and 1).
             train, validation: anything `read_rows` reads; text, label: their columns.
    Raises:  ValueError for a name that does not exist, ImportError without scikit-learn, and what a sequence task says of its rows.
    """
    if name not in BASELINES:
        raise ValueError(f"no baseline is called {name!r}; there are {', '.join(BASELINES)}: choose one")
    rows, held_out = read_rows(train), read_rows(validation)
    labels = SequenceTask(text, None, label).labels(rows, held_out)
    began = time.perf_counter()
    classify, parameters = BASELINES[name]([str(row[text]) for row in rows], [str(row[label]) for row in rows])
    answers = classify([str(row[text]) for row in held_out])
    seconds, confusion = time.perf_counter() - began, Confusion(len(labels))
    confusion.add(*(torch.tensor([labels.index(one) for one in many]) for many in ([str(row[label]) for row in held_out], answers)))
    return Baseline(name, classify, confusion.metrics(), parameters, seconds)


def majority(texts: Sequence[str], labels: Sequence[str]) -> tuple[Classifier, int]:
    commonest = Counter(labels).most_common(1)[0][0]
    return lambda asked: [commonest] * len(asked), 1


def keywords(texts: Sequence[str], labels: Sequence[str]) -> tuple[Classifier, int]:
    """score(label) = log p(label) + sum over the words of a text of log p(word | label), counts + 1: naive Bayes with one vote a word.

    Source: Maron 1961, "Automatic Indexing"; Wang & Manning 2012 (words counted once) find it hard to beat on short texts.
    """
    names, counts = sorted(set(labels)), {name: Counter[str]() for name in set(labels)}
    for text, name in zip(texts, labels, strict=True):
        counts[name].update(words(text))
    known = sorted(set().union(*counts.values()))
    table = np.array([[counts[name][word] + 1.0 for word in known] for name in names])              # (labels, words)
    votes = np.log(table / table.sum(1, keepdims=True))
    prior, place = np.log([labels.count(name) / len(labels) for name in names]), {word: i for i, word in enumerate(known)}

    def classify(asked: Sequence[str]) -> list[str]:
        found = [[place[word] for word in words(text) if word in place] for text in asked]
        return [names[int((prior + votes[:, places].sum(1)).argmax())] for places in found]
    return classify, votes.size + prior.size


def words(text: str) -> set[str]:
    return set(WORD.findall(text.lower()))


def tf_idf(model: str) -> Callable[[Sequence[str], Sequence[str]], tuple[Classifier, int]]:
    def learn(texts: Sequence[str], labels: Sequence[str]) -> tuple[Classifier, int]:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.svm import LinearSVC
        last = LogisticRegression(C=10.0, max_iter=1000) if model == "logistic" else LinearSVC(C=1.0)
        fitted = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), last).fit(texts, labels)
        return lambda asked: [str(one) for one in fitted.predict(asked)], last.coef_.size + last.intercept_.size
    return learn


BASELINES: dict[str, Callable[[Sequence[str], Sequence[str]], tuple[Classifier, int]]] = {
    "majority": majority, "keywords": keywords, "logistic": tf_idf("logistic"), "svm": tf_idf("svm")}
