"""One label for every word."""
from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...nn.heads import IGNORE
from ..entities import EntityCounts, are_iob, repaired
from ..metrics import Confusion
from ..token import Tagged, sentences_of, tagged
from .base import Answer, Given, Kind, Learn, shape
from .bilstm import bilstm as recurrent
from .sequence import logistic, svm


def tags_of(given: Given, rows: Sequence[dict]) -> list[list[str]]:
    _, tags = sentences_of(rows, given.task.words, given.task.tags, "a")
    return [repaired(one) for one in tags] if are_iob(given.labels) else tags


def asked_words(given: Given, rows: Sequence[dict]) -> list[list[str]]:
    texts = [row[given.task.words] for row in rows]
    return [text.split() if isinstance(text, str) else list(text) for text in texts]


def of_words(given: Given, rows: Sequence[dict], p: Sequence[Tensor]) -> list[Tagged]:
    """Predictions from the probabilities (T, n) of each row's words."""
    best = [one.max(-1) for one in p]
    return [tagged(row[given.task.words], [(given.labels[k], value) for value, k in zip(values.tolist(), labels.tolist(), strict=True)])
            for row, (values, labels) in zip(rows, best, strict=True)]


def majority(given: Given, rows: Sequence[dict]) -> tuple[Answer, int]:
    """The tag the word has most often in training; of a word that it lacks, the commonest tag of all."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for words, tags in zip(asked_words(given, rows), tags_of(given, rows), strict=True):
        for word, tag in zip(words, tags, strict=True):
            seen[word][tag] += 1
    every = sum(seen.values(), Counter[str]())
    best = {word: (tag, n / tags.total()) for word, tags in seen.items() for tag, n in tags.most_common(1)}
    (other,) = ((tag, n / every.total()) for tag, n in every.most_common(1))
    return lambda asked: [tagged(row[given.task.words], [best.get(word, other) for word in words])
                          for row, words in zip(asked, asked_words(given, asked), strict=True)], len(best) + 1


def clues(words: Sequence[str]) -> list[list[str]]:
    """For each word: itself, its first and last one to three characters, its shape; and the word and shape of its neighbours.

    Source: Ratnaparkhi 1996, "A Maximum Entropy Model for Part-Of-Speech Tagging", without the tags before.
    """
    around = ["", *words, ""]
    return [[f"{place} {kind} {value}" for place, near in zip((-1, 0, 1), around[i : i + 3], strict=True) for kind, value in (("word", near.lower()), ("shape", shape(near)))]
            + [f"first {word[:k]}" for k in (1, 2, 3)] + [f"last {word[-k:]}" for k in (1, 2, 3)] for i, word in enumerate(words)]


def linear(estimator: Callable[[], Any]) -> Learn:
    """A linear model of the clues, each word for itself."""
    def learn(given: Given, rows: Sequence[dict]) -> tuple[Answer, int]:
        from sklearn.feature_extraction.text import CountVectorizer
        count = CountVectorizer(analyzer=list, binary=True).fit(clue for words in asked_words(given, rows) for clue in clues(words))
        return by_words(given, rows, estimator(), lambda sentences: count.transform(clue for words in sentences for clue in clues(words)))
    return learn


def vectors(given: Given, rows: Sequence[dict]) -> tuple[Answer, int]:
    """A linear model of the static vectors of the word and its two neighbours, (3 D,)."""
    static = given.vectors
    assert static is not None

    def encode(sentences: Sequence[Sequence[str]]) -> np.ndarray:
        static.need(word for words in sentences for word in words)
        tables = [np.stack([static.zero, *(static.zero if (found := static.find(word)) is None else found for word in words), static.zero]) for words in sentences]
        return np.concatenate([np.concatenate([table[:-2], table[1:-1], table[2:]], 1) for table in tables])
    return by_words(given, rows, logistic(1.0), encode)


def by_words(given: Given, rows: Sequence[dict], estimator: Any, encode: Callable[[Sequence[Sequence[str]]], Any]) -> tuple[Answer, int]:
    """Fit on all words one below the other, and answer sentence by sentence."""
    estimator.fit(encode(asked_words(given, rows)), [given.labels.index(tag) for tags in tags_of(given, rows) for tag in tags])

    def answer(asked: Sequence[dict]) -> list[Tagged]:
        sentences = asked_words(given, asked)
        logits = torch.from_numpy(estimator.decision_function(encode(sentences))).double()
        if logits.dim() == 1:
            logits = torch.stack([torch.zeros_like(logits), logits], 1)
        return of_words(given, asked, logits.softmax(-1).split([len(words) for words in sentences]))
    return answer, estimator.coef_.size + estimator.intercept_.size


def bilstm(given: Given, rows: Sequence[dict]) -> tuple[Answer, int]:
    number = {tag: i for i, tag in enumerate(given.labels)}
    targets = [torch.tensor([number[tag] for tag in tags]) for tags in tags_of(given, rows)]

    def loss(logits: Tensor, truth: Tensor) -> Tensor:
        return cross_entropy(logits.flatten(0, 1), truth.flatten(), ignore_index=IGNORE)
    answer, parameters = recurrent(given, asked_words(given, rows), targets, len(given.labels), loss, per_word=True)
    return lambda asked: of_words(given, asked, [one.softmax(-1) for one in answer(asked_words(given, asked))]), parameters


def measure(given: Given, rows: Sequence[dict], answers: list[Tagged]) -> dict[str, float]:
    confusion, entities = Confusion(len(given.labels)), EntityCounts() if are_iob(given.labels) else None
    number = {tag: i for i, tag in enumerate(given.labels)}
    for tags, answer in zip(tags_of(given, rows), answers, strict=True):
        found = [str(one.label) for one in answer]
        confusion.add(*(torch.tensor([number[tag] for tag in many]) for many in (tags, found)))
        if entities is not None:
            entities.add(tags, found)
    return confusion.metrics() | (entities.metrics() if entities is not None else {})


KIND = Kind({"majority": majority, "logistic": linear(partial(logistic, 1.0)), "svm": linear(svm), "vectors": vectors, "bilstm": bilstm}, measure)
