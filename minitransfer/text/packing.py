"""Rows of fixed length for pretraining, filled with pieces of documents that do not see one another.

A row of 12 for an encoder (`[` and `]` are [CLS] and [SEP]), and for a decoder (`.` is the end of a document):

    input_ids      [ a a a a ] [ b b b ]         a a a a . b b b b b . c
    document_ids   0 0 0 0 0 0 1 1 1 1 1 -1      0 0 0 0 0 1 1 1 1 1 1 2
    position_ids   0 1 2 3 4 5 0 1 2 3 4  0      0 1 2 3 4 0 1 2 3 4 5 0

A document goes on in the next row where the row ends; there it starts again at position 0. Attention stays inside equal `document_ids`, so a row
gives the same numbers as its pieces alone.
"""
from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .cache import TokenCache
from .tokenizer import Tokenizer

LEAST = 8        # tokens: no piece of an encoder is begun in less room than that, since so little text predicts nothing


class PackedBatches:
    """An endless, indexable stream of packed batches.

    Batch k is a function of (corpus, tokenizer, settings, k) alone: rows are planned once, in the order of the corpus, and epoch e visits them in the
    permutation drawn from (seed, e). The last batch of an epoch may be smaller. Every token of the corpus is in exactly one row.

    Args:    length: tokens per row, specials included.
             batch_size: rows per batch.
             seed: draws the order of the rows.
             causal: False: pieces are `[CLS] text [SEP]`. True: documents end with `eos` (and begin with `bos` if that is another token).
    Yields:  input_ids (B, T), document_ids (B, T) counted per row, -1 at padding, position_ids (B, T) from 0 in each piece, all int64;
             and attention_mask (B, T) bool if there is padding.
    Raises:  ValueError if the tokenizer lacks the special tokens or is not the one of the cache, or for sizes that hold nothing.
    """

    def __init__(self, cache: TokenCache, tok: Tokenizer, length: int, batch_size: int, seed: int = 0, causal: bool = False):
        if cache.fingerprint != tok.fingerprint:
            raise ValueError(f"the corpus in {cache.folder} was tokenised by another tokenizer: call tokenize_corpus with the one you train with")
        needed = {"eos": tok.eos_id} if causal else {"cls": tok.cls_id, "sep": tok.sep_id}
        lacking = [name for name, i in needed.items() if i is None]
        if lacking:
            other = "a masked objective" if causal else "the causal objective"
            raise ValueError(f"this tokenizer has no {' and no '.join(lacking)} token; packing for causal={causal} puts it around documents: "
                             f"use {other}, or another tokenizer")
        if length < (2 if causal else 3) or batch_size < 1:
            raise ValueError(f"length={length}, batch_size={batch_size}: a row needs {2 if causal else 3} tokens or more, a batch at least one row")
        self.cache, self.length, self.batch_size, self.seed, self.causal = cache, length, batch_size, seed, causal
        own_bos = causal and tok.bos_id is not None and tok.bos_id != tok.eos_id
        # what stands around a whole document, and around each of its pieces
        self.document_ends = [np.array([tok.bos_id] if own_bos else [], np.int64), np.array([tok.eos_id] if causal else [], np.int64)]
        self.piece_ends = [np.array([] if causal else [i], np.int64) for i in (tok.cls_id, tok.sep_id)]
        self.filler = tok.filler
        self.least = 1 if causal else min(LEAST, length - 2)
        self.plan = _plan(cache.offsets, length, sum(map(len, self.document_ends)), sum(map(len, self.piece_ends)), self.least)
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-self.n_rows // self.batch_size)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        epoch, i = divmod(k, len(self))
        order = self._order
        if order is None or order[0] != epoch:
            self._order = order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.n_rows)
        return self.rows(order[1][i * self.batch_size:(i + 1) * self.batch_size])

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The first epoch once, so that a plain `for` ends."""
        return (self[k] for k in range(len(self)))

    @property
    def n_rows(self) -> int:
        """Rows per epoch."""
        return len(self.plan)

    def rows(self, indices: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        """The batch of these rows, numbered in the order of the corpus."""
        shape = len(indices), self.length
        ids, positions, documents = np.full(shape, self.filler, np.int64), np.zeros(shape, np.int64), np.full(shape, -1, np.int64)     # (B, T)
        for b, row in enumerate(indices):
            start = 0
            for n, piece in enumerate(self._pieces(*self.plan[row].tolist())):
                end = start + len(piece)
                ids[b, start:end], documents[b, start:end], positions[b, start:end] = piece, n, np.arange(len(piece))
                start = end
        batch = {"input_ids": torch.from_numpy(ids), "document_ids": torch.from_numpy(documents), "position_ids": torch.from_numpy(positions)}
        if (documents < 0).any():
            batch["attention_mask"] = batch["document_ids"] >= 0
        return batch

    def _pieces(self, document: int, offset: int) -> Iterator[np.ndarray]:
        """The pieces of one row, beginning at token `offset` of `document`; the same steps as in `_plan`."""
        room, around = self.length, sum(map(len, self.piece_ends))
        while document < self.cache.n_documents:
            whole = self._document(document, offset, room - around)
            size = self._size(document)
            take = min(size - offset, room - around)
            yield np.concatenate([self.piece_ends[0], whole[:take], self.piece_ends[1]])
            room -= take + around
            if offset + take < size:
                return
            document, offset = document + 1, 0
            if document == self.cache.n_documents or room - around < min(self.least, self._size(document)):
                return

    def _size(self, document: int) -> int:
        return int(self.cache.offsets[document + 1] - self.cache.offsets[document]) + sum(map(len, self.document_ends))

    def _document(self, document: int, offset: int, n: int) -> np.ndarray:
        """Tokens [offset, offset + n) of a document with its ends, without reading the rest of it."""
        before, after = self.document_ends
        start = max(0, offset - len(before))
        text = self.cache.document(document)[start:start + n].astype(np.int64)
        reaches_end = start + len(text) == self._size(document) - len(before) - len(after)
        return np.concatenate([before[offset:], text, after if reaches_end else after[:0]])[:n]


def _plan(offsets: np.ndarray, length: int, per_document: int, per_piece: int, least: int) -> np.ndarray:
    """(document, offset) where each row begins.

    Documents follow one another; a row ends when it is full, or when so little room is left that the next document would begin with fewer than
    `least` tokens (a shorter document that fits is taken whole). The rows that a long document fills alone are added in one step.
    """
    rows = array("q")
    full = length - per_piece
    room = 0                                            # room for text in the row that is open; 0: none is
    for first in range(0, len(offsets) - 1, 1 << 20):
        for i, n in enumerate((np.diff(offsets[first:first + (1 << 20) + 1]) + per_document).tolist(), first):
            taken = 0
            if room >= min(least, n):
                taken = min(n, room)
                room -= taken + per_piece
            if taken < n:
                whole = -(-(n - taken) // full)
                rows.extend(value for start in range(taken, n, full) for value in (i, start))
                room = full - (n - taken - (whole - 1) * full) - per_piece
    return np.frombuffer(rows, dtype=np.int64).reshape(-1, 2) if rows else np.zeros((0, 2), np.int64)
