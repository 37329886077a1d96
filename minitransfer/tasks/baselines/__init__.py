"""What a task gives without a pretrained network: the figure that any tuned model has to beat. One call each, with the metrics of `finetune`.

    sequence, multilabel  majority   the label of most rows; the labels that more than half of them have
                          keywords   the label whose telling words a text has most of: naive Bayes, one vote a word
                          logistic   TF-IDF of words and word pairs, logistic regression with C = 10 (several labels: each against the rest)
                          svm        the same features, a linear support vector machine with C = 1; its probabilities order answers, no more
    regression            mean       of the training rows
                          ridge      the same features, ridge regression
    token                 majority   the word's own commonest tag
                          logistic, svm  the word, its ends and shape, and its neighbours
    span                  overlap    words near those of the question
    similarity            overlap, tf_idf  Jaccard of the words; cosine of TF-IDF
    all but span          vectors    the mean of static word vectors (of a word: with its neighbours'), and a linear model or the cosine
    all but span and similarity   bilstm   a BiLSTM over static vectors, or over vectors that it learns itself from the training rows alone
"""
from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...text import read_rows
from ..base import Task
from ..metrics import shown
from ..named import task_of
from ..split import check_held_out
from . import multilabel, regression, sequence, similarity, span, token
from .base import WORD, Answer, Given, Kind, WordVectors

__all__ = ["KINDS", "WORD", "Baseline", "baseline"]

KINDS: dict[str, Kind] = {"sequence": sequence.KIND, "multilabel": multilabel.KIND, "regression": regression.KIND, "token": token.KIND, "span": span.KIND,
                          "similarity": similarity.KIND}


@dataclass(frozen=True, repr=False)
class Baseline:
    """What answers, and how it did on the held-out rows; prints as a sentence. `parameters`: numbers it learned."""

    name: str
    metrics: dict[str, float]
    parameters: int
    seconds: float
    task: Task
    answer: Answer = field(compare=False)

    def predict(self, texts: Sequence[Any], pairs: Sequence[str] | None = None) -> list:
        """A prediction for each text, of the kind that `minitransfer.predict` gives for this task.

        Args:   texts, pairs: of a span task the questions and their contexts; for a token task a text is a string or a list of words.
        Raises: ValueError for pairs where the task has none, or none where it has.
        """
        asks = self.task.asks
        if (pairs is None) != (len(asks) == 1) or (pairs is not None and len(pairs) != len(texts)):
            raise ValueError(f"{len(texts)} texts and {'no' if pairs is None else len(pairs)} pairs for a task that reads {' and '.join(asks)}; "
                             f"{'it needs one of each for a row: give pairs=' if len(asks) > 1 else 'it reads one text a row: leave pairs out'}")
        sides = [texts] if pairs is None else [texts, pairs]
        return self.answer([dict(zip(asks, one, strict=True)) for one in zip(*sides, strict=True)]) if len(texts) else []

    def classify(self, texts: Sequence[str]) -> list[str]:
        """The labels alone, of a sequence task."""
        return [one.label for one in self.predict(texts)]

    def __str__(self) -> str:
        return f"{self.name}: {shown(self.metrics)}; {self.parameters:,} parameters, {self.seconds:.1f} s"

    __repr__ = __str__


def baseline(name: str, train: Any, validation: Any, task: str | Task = "sequence", *, text: str | None = None, pair: str | None = None, label: str | None = None,
             vectors: Any = None, seed: int = 0) -> Baseline:
    """Learn from the training rows without a pretrained network, and answer the held-out ones.

    Args:    name: see the head of this page.
             train, validation, task, text, pair, label: as in `finetune`. The text and its pair are read as one.
             vectors: a file that `read_vectors` reads, or what `train_vectors` gives, for "vectors", which needs it, and "bilstm".
             seed: of what is drawn; the same seed gives the same bits.
    Raises:  ValueError for a name that the task does not have, "vectors" without a file, and what the task says of its rows; ImportError without scikit-learn.
    """
    asked = task_of(task, {"text": text, "pair": pair, "label": label})
    kind = KINDS[asked.name]
    if name not in kind.learn:
        raise ValueError(f"no baseline of a {asked.name} task is called {name!r}; there are {', '.join(kind.learn)}: choose one")
    if name == "vectors" and vectors is None:
        raise ValueError('baseline "vectors" without a file of vectors; it averages those of the words: give vectors= the path of a word2vec, GloVe or fastText file')
    if asked.columns.get("label", "") is None:
        raise ValueError("a baseline of pairs without a score; what it answers is compared with one: give SimilarityTask(label=...) the column of the score")
    rows, held_out = read_rows(train), read_rows(validation)
    labels = asked.labels(rows, held_out)
    check_held_out(rows, held_out, asked.asks)
    began = time.perf_counter()
    static = None if vectors is None or name not in ("vectors", "bilstm") else WordVectors(vectors, spoken([*rows, *held_out], asked.asks))
    given = Given(asked, labels, static, seed)
    answer, parameters = kind.learn[name](given, rows)
    answers = answer([{column: row[column] for column in asked.asks} for row in held_out])
    seconds = time.perf_counter() - began
    return Baseline(name, kind.measure(given, held_out, answers), parameters, seconds, asked, answer)


def spoken(rows: Sequence[dict], columns: Sequence[str]) -> set[str]:
    """Every word of these columns, so that a file of vectors is read once."""
    cells = (row[column] for row in rows for column in columns)
    return {word for cell in cells for word in (WORD.findall(cell) if isinstance(cell, str) else cell)}
