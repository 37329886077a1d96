"""What the loop reads from: batches by their number."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


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
