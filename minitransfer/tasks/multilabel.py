"""Any number of labels for a whole text: each is a yes or no of its own."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from ..nn.heads import ANY_CLASS
from ..nn.model import Model
from ..text import EncodedBatches, Tokenizer, label_name
from ..text.readers import column
from ..training.evaluate import Evaluation
from ..training.ranks import each
from .base import in_batches, logits_of
from .metrics import YesNo
from .sequence import SequenceTask, check_unseen, encoded, label_set, no_label, warn_if_odd
from .split import check_several


@dataclass(frozen=True)
class LabelsPrediction:
    """The labels whose probability is above the threshold, and the probability of each; these do not add up to 1."""

    labels: list[str]
    probabilities: dict[str, float]


def sets_of_labels(rows: Sequence[dict], label: str, split: str) -> list[list[str]]:
    """Each row's labels. Raises: ValueError for a row whose labels are no list, or that names one twice or not at all."""
    values = [value.tolist() if hasattr(value, "tolist") else value for value in column(rows, label, split)]
    for i, value in enumerate(values):
        if not isinstance(value, list | tuple | set) or len(set(map(label_name, value))) < len(value) or any(map(no_label, value)):
            raise ValueError(f'{split} row {i}: {label!r} is {value!r}; the labels of a row are a list, each once, [] for none: mend the row'
                             + ('' if isinstance(value, list | tuple) else ', or use task="sequence" if every text has exactly one label'))
    return [sorted(map(label_name, value)) for value in values]


def answers(batches: EncodedBatches, threshold: float) -> Evaluation:
    """A text's label is answered with yes where its probability is above the threshold."""
    def evaluate(model: Model) -> dict[str, float]:
        counts, loss_sum, n = YesNo(len(model.labels or ())), 0.0, 0
        for truth, logits in each(range(len(batches)), lambda k: ((batch := batches[k])["labels"], logits_of(model, batch).cpu())):      # (B, n), (B, n)
            loss_sum += float(binary_cross_entropy_with_logits(logits, truth, reduction="sum"))
            n += truth.numel()
            counts.add(truth > 0.5, logits.sigmoid() > threshold)
        return counts.metrics() | {"loss": loss_sum / max(n, 1)}
    return evaluate


@dataclass(frozen=True)
class MultiLabelTask(SequenceTask):
    """Rows with a text (and a second one) and a list of labels, which may be empty.

    Args: threshold: a label is answered when its probability is above it.
    """

    name: ClassVar[str] = "multilabel"
    problem: ClassVar[str | None] = ANY_CLASS
    best: ClassVar[str] = "f1_micro higher"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold}; a probability is between 0 and 1: 0.5 is usual")

    @property
    def settings(self) -> dict[str, Any]:
        return {"threshold": self.threshold}

    def labels(self, train: Sequence[dict], validation: Sequence[dict]) -> list[str]:
        """Sorted, from the training rows alone. Raises: ValueError for labels that are no lists, none at all, or one that training lacks."""
        rows = sets_of_labels(train, self.label, "training")
        found = label_set([name for names in rows for name in names])
        if not found or all(names == found for names in rows):
            raise ValueError(f"all {len(rows)} training rows have {'the same labels' if found else 'no label'}; there is nothing to tell apart: check the column "
                             f"{self.label!r}")
        warn_if_odd(found, len(rows), self.label)
        held_out = sets_of_labels(validation, self.label, "validation") if validation else []
        for i, names in enumerate(held_out):
            check_unseen(names, found, f"validation row {i}, label")
        check_several([", ".join(names) or "(none)" for names in held_out], "validation")
        return found

    def batches(self, rows: Sequence[dict], tok: Tokenizer, labels: Sequence[str], batch_size: int | None, max_tokens: int | None,
                max_length: int | None, seed: int) -> EncodedBatches:
        named = sets_of_labels(rows, self.label, "a")
        targets = torch.tensor([[float(name in names) for name in labels] for names in named])
        return EncodedBatches(*encoded(rows, tok, self.text, self.pair, max_length), targets, tok, batch_size, max_tokens, seed, self.text)

    def evaluation(self, batches: Any) -> Evaluation:
        return answers(batches, self.threshold)

    def predict(self, model: Model, tok: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, batch_size: int,
                max_length: int | None) -> list:
        ids, type_ids = tok.encode_rows(texts, pairs, max_length)
        found, names = in_batches(model, tok, ids, type_ids, batch_size, Tensor.sigmoid), model.labels or []
        each = [dict(zip(names, found[i].tolist(), strict=True)) for i in range(len(ids))]
        return [LabelsPrediction([name for name, p in one.items() if p > self.threshold], one) for one in each]
