"""Who may look where. One convention everywhere: bool, True = may attend, broadcastable to (B, H, T, S); masks are combined with `&`.

A mask is kept as the facts it follows from, and any part of the matrix is made on demand: a backend that never holds T x S scores
should not be handed a T x S mask.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from .packing import Packing


@dataclass(frozen=True)
class Mask:
    """The facts: which keys exist, whether time has a direction, how far back one may look, which document a token is in.

    Queries are the last T of the S keys (T < S when keys come from a cache).
    """

    keep: Bool[Tensor, "B S"] | None = None             # None: every key exists
    causal: bool = False
    window: int | None = None                           # |query - key| < window, in positions
    documents: Int[Tensor, "B S"] | None = None         # tokens see their own document only
    packing: Packing | None = None                      # the texts of a batch lie in one row without padding, and are these documents
    ahead: int = 0                                      # so many keys before these S are seen by every query: those of a learned prefix
    positions: Int[Tensor, "B S"] | None = None         # where the keys stand; None: as far apart as their columns
    made: dict = field(default_factory=dict, compare=False, repr=False)     # the whole matrix, once made: every block asks for it

    def restricts(self) -> bool:
        """Whether anything is forbidden at all beyond what `causal` says."""
        return self.keep is not None or self.window is not None or self.documents is not None

    def follows_from_columns(self) -> bool:
        """Whether `causal` and `window` say it all."""
        return self.keep is None and self.documents is None and self.positions is None and not self.ahead

    def within(self, window: int | None) -> Mask:
        """The same facts with another window."""
        return self if window == self.window else replace(self, window=window, made={})

    def part(self, queries: range, keys: range, device: torch.device) -> Bool[Tensor, "#B 1 t s"]:
        """The rows `queries` and columns `keys` of the matrix; both count from the first key, which is the prefix's if there is one."""
        if self.ahead:
            P, now = self.ahead, replace(self, ahead=0, made={})
            seen = min(max(P - keys.start, 0), len(keys))                           # how many of the columns are the prefix's
            inner = now.part(range(queries.start - P, queries.stop - P), range(keys.start + seen - P, keys.stop - P), device)
            return pad(inner, (seen, 0), value=True)
        i = torch.arange(queries.start, queries.stop, device=device)[:, None]      # (t, 1)
        j = torch.arange(keys.start, keys.stop, device=device)[None]               # (1, s)
        allowed = j <= i if self.causal else torch.ones(len(queries), len(keys), dtype=torch.bool, device=device)
        if self.window is not None and self.positions is None:
            allowed = allowed & ((i - j).abs() < self.window)
        allowed = allowed[None]                                                     # (1, t, s)
        if self.window is not None and self.positions is not None:
            p = self.positions
            allowed = allowed & ((p[:, queries.start : queries.stop, None] - p[:, None, keys.start : keys.stop]).abs() < self.window)
        if self.keep is not None:
            allowed = allowed & self.keep[:, None, keys.start : keys.stop]          # (B, t, s)
        if self.documents is not None:
            d = self.documents
            allowed = allowed & (d[:, queries.start : queries.stop, None] == d[:, None, keys.start : keys.stop])
        return allowed[:, None]                                                     # (B or 1, 1, t, s)

    def dense(self, T: int, S: int, device: torch.device) -> Bool[Tensor, "#B 1 T S"]:
        """The whole matrix."""
        if (T, S) not in self.made:
            self.made[T, S] = self.part(range(S - T, S), range(S), device)
        return self.made[T, S]


def positions_from(keep: Bool[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Number the attended tokens 0, 1, 2, ...: padding on either side leaves the others where they were."""
    return (keep.cumsum(-1) - 1).clamp(min=0)


def positions_in_documents(documents: Int[Tensor, "B S"]) -> Int[Tensor, "B S"]:
    """Number the tokens of each document 0, 1, 2, ... in a packed row, whatever stands between them.

    position[j] = how many of the columns before j have the document id of j
    """
    ordered, order = documents.sort(dim=-1, stable=True)
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    return torch.empty_like(order).scatter_(-1, order, index - (index * starts).cummax(-1).values)


def scattered(documents: Int[Tensor, "B S"], positions: Int[Tensor, "B S"]) -> bool:
    """Whether something else, padding (-1) or another document, stands between tokens of a document: columns then do not tell how far apart they are."""
    begins = (documents[:, 1:] != documents[:, :-1]) & (documents[:, 1:] >= 0)
    return bool((begins & (positions[:, 1:] > 0)).any())
