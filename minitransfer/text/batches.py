"""Batches of labelled texts: rows of similar length together, by number or by a token budget."""
from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence, Sized
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .readers import column
from .tokenizer import Tokenizer, check_tokens


def by_length(rows: Sequence[Sized], n: int) -> Iterator[list[int]]:
    """The numbers of rows, n at a time, those of like length together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    yield from (order[start : start + n] for start in range(0, len(order), n))


class EncodedBatches:
    """An endless, indexable stream of batches of texts that are ids already.

    Rows are put into buckets of similar length. Each epoch e shuffles the rows inside their buckets and then the batches, both from (seed, e), so
    batch k is a function of (rows, settings, k) alone, every row comes once per epoch, and the number of batches never changes.

    Args:    ids, type_ids: of each text.
             targets: (N, ...), what each text is labelled with; None: with nothing.
             batch_size: rows per batch; or
             max_tokens: the budget of a batch, rows x the longest of them, padding included. Exactly one of the two.
             seed: draws the order; text: the column the ids come from, for messages.
    Yields:  what `tok(...)` gives, and labels (B, ...) if there are targets.
    Raises:  ValueError for no rows, a text without a token, a row above the budget, or not exactly one size.
    """

    def __init__(self, ids: Sequence[np.ndarray], type_ids: Sequence[np.ndarray], targets: Tensor | None, tok: Tokenizer, batch_size: int | None = None,
                 max_tokens: int | None = None, seed: int = 0, text: str = "text"):
        check_sizes(batch_size, max_tokens, len(ids))
        self.tok, self.batch_size, self.max_tokens, self.seed = tok, batch_size, max_tokens, seed
        self.ids, self.type_ids, self.targets = ids, type_ids, targets
        self.lengths = np.array([len(one) for one in self.ids])
        check_tokens(self.ids, f"the {text!r} of row")
        if max_tokens is not None and self.lengths.max() > max_tokens:
            raise ValueError(f"row {int(self.lengths.argmax())} has {self.lengths.max()} tokens; a batch holds max_tokens={max_tokens}: "
                             "use a larger budget or a smaller max_length")
        widths = bucket(self.lengths)
        self.widths = widths if max_tokens is None else np.minimum(widths, max_tokens)
        self.edges = self._cut(np.sort(self.widths))
        self._plan: tuple[int, np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.edges) - 1

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        epoch, i = divmod(k, len(self))
        plan = self._plan
        if plan is None or plan[0] != epoch:
            generator = np.random.default_rng((self.seed, epoch))
            shuffled = generator.permutation(len(self.ids))
            self._plan = plan = epoch, shuffled[np.argsort(self.widths[shuffled], kind="stable")], generator.permutation(len(self))
        _, rows, order = plan
        return self.rows(rows[self.edges[order[i]]:self.edges[order[i] + 1]])

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The first epoch once, so that a plain `for` ends."""
        return (self[k] for k in range(len(self)))

    def in_order(self) -> Iterator[dict[str, Tensor]]:
        """Every row once, in the order it was given: for evaluation."""
        edges = self._cut(self.lengths)
        return (self.rows(np.arange(start, end)) for start, end in pairwise(edges))

    def rows(self, indices: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """The batch of these rows."""
        batch = self.tok.collate([self.ids[i] for i in indices], [self.type_ids[i] for i in indices])
        return batch if self.targets is None else batch | {"labels": self.targets[torch.as_tensor(np.asarray(indices))]}

    def _cut(self, widths: np.ndarray) -> list[int]:
        """Where batches begin and end in a list of widths: as many rows as the size or the budget allows."""
        if self.batch_size is not None:
            return [*range(0, len(widths), self.batch_size), len(widths)]
        assert self.max_tokens is not None
        edges, longest = [0], 0
        for i, width in enumerate(widths.tolist()):
            longest = max(longest, width)
            if longest * (i + 1 - edges[-1]) > self.max_tokens:
                edges.append(i)
                longest = width
        return [*edges, len(widths)]


class LabelledBatches(EncodedBatches):
    """`EncodedBatches` of rows with a text and one of several classes.

    Args:    rows: dicts, as `read_rows` gives them.
             labels: the names of the classes, in the order of the model's outputs.
             text, pair, label: the columns to read; other columns are not touched.
             max_length: longer texts lose their ends, with one warning; default: the tokenizer's.
    Yields:  what `tok(...)` gives, and labels (B,) int64: numbers of classes.
    Raises:  KeyError for a missing column; ValueError for an unknown label, or a text that is none.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], tok: Tokenizer, labels: Sequence[str], text: str = "text", pair: str | None = None,
                 label: str = "label", batch_size: int | None = None, max_tokens: int | None = None, max_length: int | None = None, seed: int = 0):
        check_sizes(batch_size, max_tokens, len(rows))
        targets = label_numbers(column(rows, label), labels)
        ids, type_ids = tok.encode_rows(column(rows, text), None if pair is None else column(rows, pair), max_length)
        super().__init__(ids, type_ids, targets, tok, batch_size, max_tokens, seed, text)


class TextBatches(EncodedBatches):
    """`EncodedBatches` of the texts of rows alone: what alignment and replay read. See `LabelledBatches` for the arguments."""

    def __init__(self, rows: Sequence[dict[str, Any]], tok: Tokenizer, text: str = "text", pair: str | None = None, batch_size: int | None = 32,
                 max_tokens: int | None = None, max_length: int | None = None, seed: int = 0):
        ids, type_ids = tok.encode_rows(column(rows, text), None if pair is None else column(rows, pair), max_length)
        super().__init__(ids, type_ids, None, tok, batch_size, max_tokens, seed, text)


def check_sizes(batch_size: int | None, max_tokens: int | None, n_rows: int) -> None:
    """Raises: ValueError for not exactly one size, or no rows."""
    sizes = [size for size in (batch_size, max_tokens) if size is not None]
    if len(sizes) != 1 or not isinstance(sizes[0], int) or sizes[0] < 1:
        raise ValueError(f"batch_size={batch_size!r}, max_tokens={max_tokens!r}; exactly one of them is needed, 1 or more: choose rows or tokens")
    if not n_rows:
        raise ValueError("no rows; at least one is needed: check the file or the filter they come from")


def bucket(lengths: np.ndarray) -> np.ndarray:
    """Lengths in tokens rounded up to the width of their bucket, (N,) -> (N,): multiples of 8 below 64, from there four buckets to each doubling."""
    step = np.maximum(8, 2 ** (np.floor(np.log2(np.maximum(lengths, 4))).astype(np.int64) - 2))
    return -(-lengths // step) * step


def label_name(value: Any) -> str:
    """A label as text. Whole numbers are written alike, whether they came as 1 or as 1.0: one empty cell makes a column of whole numbers one of floats."""
    return str(int(float(value))) if isinstance(value, Real) and not isinstance(value, Integral) and float(value).is_integer() else str(value)


def label_numbers(values: Sequence[Any], labels: Sequence[str]) -> Tensor:
    """Labels as numbers of classes, (N,) int64.

    Warns:   if all of ten rows or more carry one label although the classes are several: such rows are usually the top of a file sorted by label.
    Raises:  ValueError for a label that is not one of `labels`.
    """
    number = {str(name): i for i, name in enumerate(labels)}
    for i, value in enumerate(values):
        if label_name(value) not in number:
            raise ValueError(f"row {i} has the label {value!r}; the classes are {', '.join(map(repr, number))}: mend the row, or name every label")
    counts = Counter(map(label_name, values))
    if len(counts) == 1 and len(labels) > 1 and len(values) >= 10:
        warnings.warn(f"all {len(values)} rows have the label {next(iter(counts))!r}: the rows may be the top of a file sorted by label; "
                      "draw them with sample_rows(rows, n, by=...) instead of slicing", UserWarning, stacklevel=3)
    return torch.tensor([number[label_name(value)] for value in values], dtype=torch.long)
