"""A padded batch without its padding: between embedding and head, blocks see the tokens of all texts one after another and nothing else."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the N tokens of a (B, T) batch are. Text b owns offsets[b] .. offsets[b + 1] of the packed row."""

    place: Int[Tensor, "N"]             # of each token in the flattened batch
    offsets: Int[Tensor, "B1"]          # int32, as kernels read them
    shape: tuple[int, int]              # B, T

    @classmethod
    def of(cls, keep: Bool[Tensor, "B T"]) -> Packing:
        """On a GPU the host waits once, to learn N."""
        lengths = keep.sum(1)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
        return cls(keep.flatten().nonzero()[:, 0], offsets, (keep.shape[0], keep.shape[1]))

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (1, N, ...); a row that all texts share, (1, T, ...), is read for each."""
        B, T = self.shape
        return x.expand(B, T, *x.shape[2:]).flatten(0, 1)[self.place][None]

    def unpack(self, x: Float[Tensor, "1 N D"]) -> Float[Tensor, "B T D"]:
        """Back, with zeros where there is no token."""
        B, T = self.shape
        return x.new_zeros(B * T, x.shape[-1]).index_copy(0, self.place, x[0]).view(B, T, -1)

    @property
    def keep(self) -> Bool[Tensor, "B T"]:
        """Which places of the batch hold a token."""
        B, T = self.shape
        return torch.zeros(B * T, dtype=torch.bool, device=self.place.device).index_fill(0, self.place, True).view(B, T)

    @property
    def texts(self) -> Int[Tensor, "1 N"]:
        """The number of each token's text."""
        return (self.place // self.shape[1])[None]
