"""A number for a whole text, or for a pair of texts: how similar, how good, how hard."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..nn.heads import REGRESSION
from ..nn.model import Model
from ..text import EncodedBatches, Tokenizer
from ..text.readers import column
from ..training.evaluate import Evaluation
from ..training.ranks import each
from .base import in_batches, logits_of
from .metrics import Numbers
from .sequence import SequenceTask, encoded

LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class NumberPrediction:
    """The number the model gives a text, in the unit of the training rows."""

    value: float


def numbers_of(rows: Sequence[dict], label: str, split: str) -> Tensor:
    """Each row's number, (N,). Raises: ValueError for a row without a finite one, as float32 counts."""
    found = []
    for i, value in enumerate(column(rows, label, split)):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not abs(number) <= LARGEST:
            raise ValueError(f"{split} row {i}: {label!r} is {value!r}; a finite number is needed in every row (at most {LARGEST:.1g}): mend or drop the row")
        found.append(number)
    return torch.tensor(found)


def distances(batches: EncodedBatches) -> Evaluation:
    def evaluate(model: Model) -> dict[str, float]:
        numbers = Numbers()
        for truth, answer in each(range(len(batches)), lambda k: ((batch := batches[k])["labels"], logits_of(model, batch)[:, 0].cpu())):
            numbers.add(truth, answer)
        found = numbers.metrics()
        return found | {"loss": found["mse"]}
    return evaluate


@dataclass(frozen=True)
class RegressionTask(SequenceTask):
    """Rows with a text (and a second one) and a number."""

    name: ClassVar[str] = "regression"
    problem: ClassVar[str | None] = REGRESSION
    best: ClassVar[str] = "pearson higher"

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def labels(self, train: Sequence[dict], validation: Sequence[dict]) -> list[str]:
        """The name of the one output: that of the column. Raises: ValueError for rows without a number, or with the same one everywhere."""
        for split, rows in (("training", train), ("validation", validation)):
            numbers = numbers_of(rows, self.label, split)
            if len(numbers) > 1 and bool((numbers == numbers[0]).all()):
                raise ValueError(f"all {len(numbers)} {split} rows have {self.label!r} {float(numbers[0]):g}; there is nothing to tell apart: check the column")
        return [self.label]

    def batches(self, rows: Sequence[dict], tok: Tokenizer, labels: Sequence[str], batch_size: int | None, max_tokens: int | None,
                max_length: int | None, seed: int) -> EncodedBatches:
        return EncodedBatches(*encoded(rows, tok, self.text, self.pair, max_length), numbers_of(rows, self.label, "a"), tok, batch_size, max_tokens, seed, self.text)

    def evaluation(self, batches: Any) -> Evaluation:
        return distances(batches)

    def predict(self, model: Model, tok: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, batch_size: int,
                max_length: int | None) -> list:
        ids, type_ids = tok.encode_rows(texts, pairs, max_length)
        found = in_batches(model, tok, ids, type_ids, batch_size, lambda logits: logits)
        return [NumberPrediction(float(found[i][0])) for i in range(len(ids))]
