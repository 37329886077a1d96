"""Batches of pairs in which each text is read for itself: rows 0 ... B - 1 are the first texts, rows B ... 2 B - 1 the second ones."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from .batches import EncodedBatches
from .tokenizer import Tokenizer


def stacked(first: dict[str, Tensor], second: dict[str, Tensor], fill: dict[str, int]) -> dict[str, Tensor]:
    """Both batches in one, padded on the right to the wider: columns (B, T) -> (2 B, T). fill: what stands at padding, 0 unless named."""
    width = max(batch["input_ids"].shape[1] for batch in (first, second))
    return {name: torch.cat([pad(batch[name], (0, width - batch[name].shape[1]), value=fill.get(name, 0)) for batch in (first, second)])
            for name, column in first.items() if column.dim() == 2}


class PairBatches(EncodedBatches):
    """`EncodedBatches` of pairs of texts, each a row of its own; sorted by the first text's length.

    Args:    first, second: ids and token type ids of the texts, as `tok.encode_rows` gives them; targets: (N, ...), of each pair; batch_size: pairs.
    Yields:  what `tok(...)` gives for 2 B texts, and labels (B, ...).
    """

    def __init__(self, first: tuple[Sequence[np.ndarray], Sequence[np.ndarray]], second: tuple[Sequence[np.ndarray], Sequence[np.ndarray]], targets: Tensor,
                 tok: Tokenizer, batch_size: int, seed: int = 0):
        super().__init__(*first, targets, tok, batch_size, None, seed)
        self.second = EncodedBatches(*second, targets, tok, batch_size, None, seed)

    def rows(self, indices: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        first, second = super().rows(indices), self.second.rows(indices)
        return stacked(first, second, {"input_ids": self.tok.filler}) | {"labels": first["labels"]}
