"""One vector a word, whatever stands around it: the first body that was pretrained on raw text and handed on."""
from __future__ import annotations

import torch
from torch import nn

from ..config import NoAttention
from .model import Model


class StaticTable(nn.Module):
    """The table of the vectors that are kept."""

    def __init__(self, n: int, d: int):
        super().__init__()
        self.tokens = nn.Embedding(n, d)


class StaticVectors(Model):
    """Two tables (V, D): `embed`, the vectors v, and `context`, the vectors u of the same words where they are what is predicted. No block, no head.

    Args:   n: words; d: numbers of a vector; seed: of the v, uniform in (-1 / 2D, 1 / 2D); the u start at 0.
    Source: Mikolov et al. 2013b, "Distributed Representations of Words and Phrases and their Compositionality"; the start is that of their program.
    """

    def __init__(self, n: int, d: int, seed: int = 0):
        nn.Module.__init__(self)                                                 # none of the parts of a network with blocks
        self.config = NoAttention(vocab_size=n, d_model=d, n_layers=1)
        self.embed, self.context, self.blocks = StaticTable(n, d), nn.Embedding(n, d), nn.ModuleList()
        self.head, self.head_name, self.labels, self.load_report = None, "none", None, None
        self.checkpointing, self.progress = False, 0.0
        with torch.no_grad():
            self.embed.tokens.weight.uniform_(-0.5 / d, 0.5 / d, generator=torch.Generator().manual_seed(seed))
            self.context.weight.zero_()
