"""A padded batch without its padding: between embedding and head, blocks see the tokens of all texts one after another and nothing else."""
from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """Where the N rows of a (B, T) batch are that blocks see. Text b owns offsets[b] .. offsets[b + 1] of them; those behind the last are padding, which no token sees."""

    place: Int[Tensor, "N"]             # of each in the flattened batch, no two alike
    offsets: Int[Tensor, "B1"]          # int32, as kernels read them
    keep: Bool[Tensor, "B T"]           # which places of the batch hold a token

    @classmethod
    def of(cls, keep: Bool[Tensor, "B T"], place: Int[Tensor, "N"] | None = None) -> Packing:
        """place: those of all tokens in order, and behind them of padding; None: of the tokens alone, for whose number the host waits on a GPU."""
        lengths = keep.sum(1)
        offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
        return cls(keep.flatten().nonzero()[:, 0] if place is None else place, offsets, keep)

    @property
    def shape(self) -> tuple[int, int]:
        return self.keep.shape[0], self.keep.shape[1]

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (1, N, ...); a row that all texts share, (1, T, ...), is read for each."""
        B, T = self.shape
        return x.expand(B, T, *x.shape[2:]).flatten(0, 1).index_select(0, self.place)[None]

    def unpack(self, x: Float[Tensor, "1 N D"]) -> Float[Tensor, "B T D"]:
        """Back, with zeros where nothing was packed."""
        B, T = self.shape
        return x.new_zeros(B * T, x.shape[-1]).index_copy(0, self.place, x.squeeze(0)).view(B, T, -1)

    @property
    def texts(self) -> Int[Tensor, "1 N"]:
        """The number of each token's text; -1 for padding."""
        return (self.place // self.shape[1]).where(self.keep.flatten()[self.place], -1)[None]
