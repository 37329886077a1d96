"""What the loop reads from: batches by their number."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from .cache import TokenCache
from .tokenizer import Tokenizer


@runtime_checkable
class Batches(Protocol):
    """`batches[k]` is the k-th batch of an endless stream, `len(batches)` the number of batches in an epoch; nothing is remembered between calls."""

    def __len__(self) -> int: ...

    def __getitem__(self, k: int) -> dict[str, Tensor]: ...


def check_batches(given: Any, name: str) -> None:
    """Raises: ValueError for texts or rows, where batches made of them are needed."""
    first = given[0] if isinstance(given, Batches) and len(given) else None
    if not isinstance(first, Mapping) or "input_ids" not in first:
        raise ValueError(f"{name} is a {type(given).__name__}, and no batches of token ids; they are made with a tokenizer: "
                         "give TextBatches(rows, tok), or PackedBatches(tokenize_corpus(tok, corpus), tok, 64, 8), of minitransfer.text")


class StreamBatches:
    """A corpus as `batch_size` unbroken streams that are read side by side: batch k + 1 goes on where batch k ended, as truncated backpropagation needs it.

        stream 0    a b c d | d e f g | g h i j        a row of a batch: length + 1 tokens, of which the last is predicted only
        stream 1    k l m n | n o p q | q r s t

    Documents follow one another with the end token between them; a few tokens at the end of a stream may be left over. Epochs begin at places of their own,
    drawn from (seed, epoch), so that rows are not always cut between the same words.

    Args:    length: tokens through which the loss goes back.
    Yields:  input_ids (B, length + 1) int64; continues, a bool: whether it goes on where the batch before it ended.
    Raises:  ValueError for a corpus too short, sizes below 1, or a tokenizer without an end token.
    Source:  Merity et al. 2018, section 5. Deviation: the place of the first cut is drawn, and not the length of every batch.
    """

    def __init__(self, cache: TokenCache, tok: Tokenizer, length: int = 70, batch_size: int = 32, seed: int = 0):
        end = tok.sep_id if tok.eos_id is None else tok.eos_id
        if end is None or cache.fingerprint != tok.fingerprint:
            raise ValueError("this tokenizer has no end token, or did not make the ids of this corpus; the end stands between documents: call tokenize_corpus with the "
                             "one you train with, which has an eos or sep token")
        self.ids = np.concatenate([np.append(cache.document(i), end) for i in range(cache.n_documents)]).astype(np.int32)
        self.length, self.batch_size, self.seed = length, batch_size, seed
        if min(length, batch_size) < 1 or len(self) < 1:
            raise ValueError(f"{len(self.ids)} tokens for {batch_size} streams in batches of {length}; each stream needs twice the length at least: give more text, or "
                             "smaller sizes, 1 or more")

    def __len__(self) -> int:
        """Batches per epoch."""
        return (len(self.ids) - self.length) // (self.batch_size * self.length)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        epoch, i = divmod(k, len(self))
        first = int(np.random.default_rng((self.seed, epoch)).integers(self.length))
        streams = first + np.arange(self.batch_size) * len(self) * self.length   # where each begins
        places = streams[:, None] + i * self.length + np.arange(self.length + 1)
        return {"input_ids": torch.from_numpy(self.ids[places].astype(np.int64)), "continues": torch.tensor(i > 0)}
