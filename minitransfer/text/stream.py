"""What the loop reads from: batches by their number."""
from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Batches(Protocol):
    """`batches[k]` is the k-th batch of an endless stream, `len(batches)` the number of batches in an epoch; nothing is remembered between calls."""

    def __len__(self) -> int: ...

    def __getitem__(self, k: int) -> dict[str, Tensor]: ...
