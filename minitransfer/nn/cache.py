"""The keys and values a decoder has already computed, so that a new token costs one row and not the whole text."""
from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class LayerCache:
    """Keys and values of one block, in buffers that grow by doubling; and those of its cross-attention, which are computed once."""

    def __init__(self) -> None:
        self.k: Tensor | None = None
        self.v: Tensor | None = None
        self.length = 0
        self.crossed: tuple[Tensor, Tensor] | None = None   # (B, K, M, Dh) each, of the M states that were read

    def append(self, k: Float[Tensor, "B K T Dh"], v: Float[Tensor, "B K T Dh"]) -> tuple[Float[Tensor, "B K S Dh"], Float[Tensor, "B K S Dh"]]:
        """Add T positions and return all S of them."""
        end = self.length + k.shape[2]
        if self.k is None or self.v is None or end > self.k.shape[2]:
            self.k, self.v = (self.grown(old, new, 2 * end) for old, new in ((self.k, k), (self.v, v)))
        self.k[:, :, self.length : end], self.v[:, :, self.length : end] = k, v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]

    def grown(self, old: Tensor | None, new: Tensor, size: int) -> Tensor:
        buffer = new.new_zeros(*new.shape[:2], size, new.shape[3])
        if old is not None:
            buffer[:, :, : self.length] = old[:, :, : self.length]
        return buffer


class Cache:
    """One LayerCache per block, and which of the S cached positions are tokens."""

    def __init__(self, n_layers: int) -> None:
        self.layers = [LayerCache() for _ in range(n_layers)]
        self.keep: Bool[Tensor, "B S"] | None = None

    @property
    def length(self) -> int:
        return self.layers[0].length

    def see(self, keep: Bool[Tensor, "B T"]) -> Bool[Tensor, "B S"]:
        """Remember which of the new positions are tokens; returns this for all positions."""
        self.keep = keep if self.keep is None else torch.cat([self.keep, keep], dim=1)
        return self.keep

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order (finished texts leave; beams are copied)."""
        if self.keep is not None:
            self.keep = self.keep[rows]
        for layer in self.layers:
            if layer.k is not None and layer.v is not None:
                layer.k, layer.v = layer.k[rows], layer.v[rows]
            if layer.crossed is not None:
                layer.crossed = layer.crossed[0][rows], layer.crossed[1][rows]
