"""What a task is: rows in, a head, batches, metrics and predictions out. `finetune` and `predict` know no more of a task than this."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..nn.evaluating import evaluating
from ..nn.heads import IGNORE
from ..nn.model import Model
from ..objectives.base import INPUTS
from ..text import Tokenizer
from ..text.batches import by_length
from ..text.tokenizer import check_tokens
from ..training import Batches
from ..training.evaluate import Evaluation
from ..training.ranks import each
from ..transfer.named import check_not_by_row
from .auc import Auc
from .metrics import Confusion


@runtime_checkable
class Task(Protocol):
    """One kind of question; its settings are the columns to read."""

    name: ClassVar[str]
    head: ClassVar[str]             # of the model
    problem: ClassVar[str | None]   # of a head that can be read in several ways
    best: ClassVar[str]             # the metric that picks the weights to keep, and its direction

    @property
    def columns(self) -> dict[str, Any]:
        """The columns that are read: setting -> name of the column."""

    @property
    def settings(self) -> dict[str, Any]:
        """What is no column; saved with the model, so that `predict` does as training did."""

    @property
    def asks(self) -> list[str]:
        """The columns that hold the question; rows that agree in them are duplicates."""

    def labels(self, train: Sequence[dict], validation: Sequence[dict]) -> list[str]:
        """The classes of the training rows, after both were checked."""

    def batches(self, rows: Sequence[dict], tok: Tokenizer, labels: Sequence[str], batch_size: int | None, max_tokens: int | None,
                max_length: int | None, seed: int) -> Batches: ...

    def evaluation(self, batches: Any) -> Evaluation:
        """Metrics of a model on these batches."""

    def predict(self, model: Model, tok: Tokenizer, texts: Sequence[Any], pairs: Sequence[str] | None, batch_size: int,
                max_length: int | None) -> list: ...


class Supervised:
    """The head's own loss for the labels of the batch, whatever their shape is."""

    def most_targets(self, n: int) -> int:
        """How many of n positions have a target at most."""
        return n

    def __call__(self, model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int | Tensor]:
        inputs: dict[str, Any] = {name: batch[name] for name in INPUTS if name in batch}
        head: Any = model.head
        return head.loss(model.body(**inputs), batch["labels"])


supervised = Supervised()


def classification(batches: Batches) -> Evaluation:
    """An evaluation for `train`: one epoch of batches, each target one decision. Gives `Confusion.metrics`, of two labels also `Auc.metrics`, and the loss
    per target in nats."""
    def evaluate(model: Model) -> dict[str, float]:
        def ask(k: int) -> tuple[float, Tensor, Tensor]:
            batch = {name: t.to(model.device) for name, t in batches[k].items()}
            out, asked = model(**batch), batch["labels"] != IGNORE
            return float(out.loss), batch["labels"][asked].cpu(), out.logits[asked].cpu()      # (N,), (N, n)
        confusion, loss_sum = Confusion(len(model.labels or ())), 0.0
        auc = Auc() if len(model.labels or ()) == 2 else None
        for loss, truth, logits in each(range(len(batches)), ask):
            loss_sum += loss * len(truth)
            confusion.add(truth, logits.argmax(-1))
            if auc is not None:
                auc.add(truth, (logits[..., 1] - logits[..., 0]).float())
        return confusion.metrics() | (auc.metrics() if auc is not None else {}) | {"loss": loss_sum / max(confusion.n, 1)}
    return evaluate


def logits_of(model: Model, batch: dict[str, Tensor]) -> Tensor:
    """The answer of the model, in fp32, to a batch with or without labels, which it does not see."""
    return model(**{name: t.to(model.device) for name, t in batch.items() if name in INPUTS}).logits.float()


def probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(-1)


def in_batches(model: Model, tok: Tokenizer, ids: Sequence, type_ids: Sequence, batch_size: int,
               read: Callable[[Tensor], Tensor] = probabilities) -> dict[int, Tensor]:
    """Row number -> what `read` makes of its logits, (n,) or (T, n) without padding. Rows of similar length are computed together.

    Raises: ValueError for a text without a token, or an adapter for each row.
    """
    check_not_by_row(model, "predict")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; so many texts are computed at a time: give 1 or more")
    check_tokens(ids)
    found: dict[int, Tensor] = {}
    with evaluating(model), torch.no_grad():
        for rows in by_length(ids, batch_size):
            batch = tok.collate([ids[i] for i in rows], [type_ids[i] for i in rows])
            answers = read(logits_of(model, batch)).cpu()
            found |= {i: one if one.dim() == 1 else one[: len(ids[i])] for i, one in zip(rows, answers, strict=True)}
    return found


def longest(model: Model, tok: Tokenizer, max_length: int | None, ahead: int = 0) -> int:
    """The number of tokens after which texts are cut: what was asked for, else what both the tokenizer and the model can take.

    Args:   ahead: positions that a strategy is going to take from every text.
    Raises: ValueError for a max_length below 1 or beyond the model, or a tokenizer with more tokens than the model's table.
    """
    limit, rows = model.longest - ahead, model.config.vocab_size
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length={max_length}; texts are cut after so many tokens: use 1 to {limit}, or leave it out")
    if max_length is not None and max_length > limit:
        raise ValueError(f"max_length={max_length}; this model reads at most {limit} tokens: use {limit} or less")
    if tok.vocab_size > rows:
        raise ValueError(f"a tokenizer of {tok.vocab_size} tokens and a model with {rows} rows in its token table; every token needs a row: "
                         f"use the tokenizer the model was made with, or model.resize_vocabulary({tok.vocab_size})")
    return max_length or min(limit, tok.max_len or limit)
