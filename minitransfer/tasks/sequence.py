"""One label for a whole text, or for a pair of texts."""
from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import numpy as np

from ..nn.heads import ONE_CLASS
from ..nn.model import Model
from ..text import LabelledBatches, Tokenizer, label_name
from ..text.readers import column
from ..training import Batches
from ..training.evaluate import Evaluation
from .base import classification, in_batches
from .split import check_several


@dataclass(frozen=True)
class Prediction:
    """The likeliest label of a text, its probability, and those of all labels."""

    label: str
    probability: float
    probabilities: dict[str, float]


def label_set(names: Sequence[str]) -> list[str]:
    """The labels that occur, in order: as numbers if all are whole numbers, else as text."""
    found = set(names)
    return sorted(found, key=int) if all(name.lstrip("-").isdecimal() for name in found) else sorted(found)


def no_label(value: Any) -> bool:
    """None, NaN (an empty cell of a table of numbers) and an empty text."""
    return value is None or value != value or not str(value).strip()


def label_names(rows: Sequence[dict], label: str, split: str) -> list[str]:
    """Each row's label as text. Raises: ValueError for a row without one."""
    values = column(rows, label, split)
    for i, value in enumerate(values):
        if hasattr(value, "__len__") and not isinstance(value, str):
            raise ValueError(f'{split} row {i}: {label!r} is {value!r}; each text has one label here: use task="multilabel" for lists of labels')
        if no_label(value):
            raise ValueError(f"{split} row {i} has no label (its {label!r} is {value!r}); every row needs one: fill it in, or drop the row")
    return [label_name(value) for value in values]


def warn_if_odd(labels: Sequence[str], rows: int, label: str) -> None:
    """Warn about labels that differ in case, spaces or a final .0 only, and about so many that they are probably numbers or texts."""
    forms: dict[str, list[str]] = {}
    for name in labels:
        forms.setdefault(re.sub(r"\.0+$", "", name.strip().casefold()), []).append(name)
    if alike := [names for names in forms.values() if len(names) > 1]:
        warnings.warn(f"the labels {', '.join(map(repr, alike[0]))} differ in case, spaces or a final .0 only, and are learned as classes of their own: "
                      "write them alike if they are one", UserWarning, stacklevel=4)
    if rows >= 10 and len(labels) > rows / 2:
        warnings.warn(f"{len(labels)} labels in {rows} rows; a class can hardly be learned from one text: if {label!r} holds numbers use task=\"regression\", "
                      "or name another column", UserWarning, stacklevel=4)


def check_unseen(names: Sequence[str], known: Sequence[str], split: str = "validation") -> None:
    """Raises: ValueError for a label that the training rows do not have."""
    for i, name in enumerate(names):
        if name not in known:
            raise ValueError(f"{split} row {i} has the unknown label {name!r}; the training rows have {', '.join(map(repr, known))}, and nothing "
                             "else can be learned from them: correct the label, drop the row, or add training rows with it")


def warn_if_cut(names: Sequence[str]) -> None:
    """Warn about rows that stand sorted by label and stop short in the last one: a slice from the top of a sorted file."""
    runs, counts = [label for label, _ in groupby(names)], Counter(names)
    if len(names) >= 10 and len(runs) == len(counts) > 1 and 2 * counts[runs[-1]] < min(counts[label] for label in runs[:-1]):
        warnings.warn(f"the training rows stand sorted by label and the last label, {runs[-1]!r}, has {counts[runs[-1]]} of {len(names)} rows: "
                      "this looks like the top of a sorted file; draw the rows with sample_rows(rows, n, by=label) instead of slicing", UserWarning,
                      stacklevel=4)


def encoded(rows: Sequence[dict], tok: Tokenizer, text: str, pair: str | None, max_length: int | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Ids and token type ids of the texts of rows."""
    return tok.encode_rows(column(rows, text), None if pair is None else column(rows, pair), max_length)


@dataclass(frozen=True)
class SequenceTask:
    """Rows with a text (and a second one) and a label."""

    name: ClassVar[str] = "sequence"
    head: ClassVar[str] = "sequence"
    problem: ClassVar[str | None] = ONE_CLASS
    best: ClassVar[str] = "accuracy higher"
    text: str = "text"
    pair: str | None = None
    label: str = "label"

    @property
    def columns(self) -> dict[str, Any]:
        return {"text": self.text, "pair": self.pair, "label": self.label}

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    @property
    def asks(self) -> list[str]:
        return [self.text] if self.pair is None else [self.text, self.pair]

    def labels(self, train: Sequence[dict], validation: Sequence[dict]) -> list[str]:
        """Sorted, from the training rows alone.

        Raises: ValueError for a row without a label, training rows of one label, or a label in validation that training lacks.
        Warns:  about training rows that look like the top of a file sorted by label, and labels that look like one written in two ways, or like numbers.
        """
        names = label_names(train, self.label, "training")
        found = label_set(names)
        if len(found) == 1:
            raise ValueError(f"all {len(names)} training rows have the label {found[0]!r}; there is nothing to tell apart: the rows may be the top "
                             "of a file sorted by label, draw them with sample_rows(rows, n, by=label)")
        warn_if_cut(names)
        warn_if_odd(found, len(names), self.label)
        held_out = label_names(validation, self.label, "validation")
        check_unseen(held_out, found)
        check_several(held_out, "validation")
        return found

    def batches(self, rows: Sequence[dict], tok: Tokenizer, labels: Sequence[str], batch_size: int | None, max_tokens: int | None,
                max_length: int | None, seed: int) -> Batches:
        return LabelledBatches(rows, tok, labels, self.text, self.pair, self.label, batch_size, max_tokens, max_length, seed)

    def evaluation(self, batches: Any) -> Evaluation:
        return classification(batches)

    def predict(self, model: Model, tok: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, batch_size: int,
                max_length: int | None) -> list:
        """A `Prediction` for each text."""
        ids, type_ids = tok.encode_rows(texts, pairs, max_length)
        found, names = in_batches(model, tok, ids, type_ids, batch_size), model.labels or []
        answers = []
        for i in range(len(ids)):
            best = int(found[i].argmax())
            answers.append(Prediction(names[best], float(found[i][best]), dict(zip(names, found[i].tolist(), strict=True))))
        return answers
