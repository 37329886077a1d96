"""Ids in, vectors out."""
from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from ..config import ModelConfig
from ..ops.dispatch import within_reach
from ..ops.dropout import Dropout
from ..ops.embedding import embedding_sum
from ..ops.linear import Linear
from .norms import LayerNorm, RMSNorm, make_norm
from .positions import sinusoids
from .trace import heard


class Embeddings(nn.Module):
    """Token (+ position) (+ segment) vectors, summed; E = d_embed, if it is given with a Linear to D, before or after the norm."""

    def __init__(self, c: ModelConfig):
        super().__init__()
        E = c.embed_width
        self.scale, self.offset, self.waves = c.embed_scale, c.position_offset, c.positions == "sinusoidal"
        self.tokens = nn.Embedding(c.vocab_size, E)
        self.positions = nn.Embedding(c.max_len + c.position_offset, E) if c.positions == "learned" else None
        self.types = nn.Embedding(c.n_token_types, E) if c.n_token_types else None
        self.norm = make_norm(c, c.d_model if c.widen_first else E) if c.embed_norm else None
        self.widen, self.widen_first = Linear(E, c.d_model, bias=not c.widen_first) if c.d_embed is not None else None, c.widen_first
        self.dropout = Dropout(c.rate("embed_dropout"))
        self.prompt: nn.Module | None = None    # puts learned vectors before those of the tokens

    def forward(self, ids: Int[Tensor, "B T"], positions: Int[Tensor, "#B N"], types: Int[Tensor, "B T"] | None) -> Float[Tensor, "B N D"]:
        """Positions that are more than the ids begin with those of the soft prompt.

        Raises: ValueError for an id outside a table, before anything is computed from it; in a kernel its vector is NaN.
        """
        soft = positions.shape[1] - ids.shape[1]
        if within_reach("embedding_sum", self.tokens.weight, lambda: self.in_the_way(soft)):
            weight, bias, eps = (self.norm.weight, self.norm.bias, self.norm.eps) if isinstance(self.norm, LayerNorm) else (None, None, 0.0)
            x = embedding_sum(list(self.lookups(ids, positions, types).values()), weight, bias, eps, self.scale, self.dropout.rate if self.training else 0.0)
            return x if self.widen is None else self.widen(x)
        try:
            x = self.tokens(ids) if self.scale == 1 else self.tokens(ids) * self.scale
            if soft and self.prompt is not None:
                x, types = self.prompt(x), None if types is None else pad(types, (soft, 0))
            if self.positions is not None:
                x = x + self.positions(positions + self.offset)
            elif self.waves:
                x = x + sinusoids(positions + self.offset, x.shape[-1]).to(x.dtype)
            if self.types is not None:
                x = x + (self.types.weight[0] if types is None else self.types(types))
        except IndexError:
            raise ValueError(self.misfit(ids, positions, types)) from None
        if self.widen is not None and self.widen_first:
            x = self.widen(x)
        x = self.dropout(x if self.norm is None else self.norm(x))
        return x if self.widen is None or self.widen_first else self.widen(x)

    def in_the_way(self, soft: int) -> str:
        """What one pass over the tables cannot do."""
        found = {"a soft prompt": soft, "sinusoidal positions": self.waves, "a product before the norm": self.widen_first,
                 "RMSNorm": isinstance(self.norm, RMSNorm), "a hook on a part of it": heard(self.tokens, self.positions, self.types, self.norm)}
        return next((name for name, there in found.items() if there), "")

    def lookups(self, ids: Tensor, positions: Tensor, types: Tensor | None) -> dict[str, tuple[Tensor, Tensor]]:
        """The ids of each kind, and the table whose rows they ask for."""
        found = {"token": (ids, self.tokens.weight)}
        if self.positions is not None:
            found["position"] = positions + self.offset, self.positions.weight
        if self.types is not None:
            found["token type"] = torch.zeros_like(ids) if types is None else types, self.types.weight
        return found

    def misfit(self, ids: Tensor, positions: Tensor, types: Tensor | None) -> str:
        for name, (given, table) in self.lookups(ids, positions, types).items():
            low, high = int(given.min()), int(given.max())
            if low < 0 or high >= len(table):
                return (f"a {name} id of {low if low < 0 else high}; this model has {len(table)} of them, numbered from 0: "
                        "use the tokenizer the model was trained with, or resize_vocabulary / truncate")
        return "an id outside the embedding tables"


def unseen_rows(table: Float[Tensor, "V D"], n: int) -> Float[Tensor, "n D"]:
    """Rows for new tokens: the mean of the known ones, a neutral start that no softmax favours."""
    return table.mean(0, keepdim=True).expand(n, -1)


def resized(table: nn.Embedding, n: int) -> nn.Embedding:
    """The table with n rows: cut at the end, or grown with `unseen_rows`."""
    old = table.weight.detach()
    rows = old[:n] if n <= len(old) else torch.cat([old, unseen_rows(old, n - len(old))])
    return nn.Embedding.from_pretrained(rows.clone(), freeze=not table.weight.requires_grad)
