"""Texts that are being written: what stands there so far, and the logits of what may come next."""
from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .attention import Memory
from .cache import Cache


class Writing:
    """A decoder goes on from the texts it is given; an encoder-decoder reads them first, and goes on from `begin`.

    Args:   model: with a vocabulary head; ids, keep: (N, T), the texts with their padding on the left; use_cache: whether keys and values are kept;
            begin: of an encoder-decoder, (N or 1, U): what the texts begin with.
    """

    def __init__(self, model: Any, ids: Int[Tensor, "N T"], keep: Bool[Tensor, "N T"], use_cache: bool = True, begin: Int[Tensor, "#N U"] | None = None):
        self.head, self.ids, self.keep, self.write = model.head, ids, keep, model.body
        self.memory: Memory | None = None if begin is None else model.read(ids, keep)
        if begin is not None:
            self.ids = begin.expand(len(ids), -1)
            self.keep, self.write = torch.ones_like(self.ids, dtype=torch.bool), model.decoder.body
        self.cache = Cache(model.config.n_decoder_layers or model.config.n_layers) if use_cache else None
        self.unread = self.ids.shape[1]                                          # so many ids at the end are not in the cache yet

    def logits(self) -> Float[Tensor, "N V"]:
        """Of the next token, in float32."""
        write = self.write if self.memory is None else partial(self.write, memory=self.memory)
        body = write(self.ids[:, -self.unread :], self.keep[:, -self.unread :], cache=self.cache)
        return self.head.logits(body.x[:, -1]).float()

    def add(self, tokens: Int[Tensor, "N 1"]) -> None:
        self.ids, self.keep = torch.cat([self.ids, tokens], 1), torch.cat([self.keep, torch.ones_like(tokens, dtype=torch.bool)], 1)
        self.unread = 1 if self.cache is not None else self.ids.shape[1]

    def select(self, rows: Int[Tensor, "M"]) -> None:
        """Keep these texts, in this order; one may be kept several times."""
        self.ids, self.keep = self.ids[rows], self.keep[rows]
        if self.cache is not None:
            self.cache.select(rows)
        if self.memory is not None:
            keep = self.memory.mask.keep
            self.memory = Memory(self.memory.x[rows], replace(self.memory.mask, keep=None if keep is None else keep[rows], made={}))
