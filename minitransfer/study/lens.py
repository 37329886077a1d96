"""What a model would say if it stopped after block i: the logit lens."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..nn.evaluating import evaluating
from ..nn.given import need_vocabulary
from ..nn.model import Model
from ..nn.trace import Trace
from ..text import Tokenizer
from ..transfer.groups import Table
from .tables import draw_squares, new_axes


@dataclass(frozen=True, repr=False)
class LogitLens(Table):
    """For each layer (0: the embeddings, i: after block i) and position: the likeliest token, its probability, and how far the distribution is from the last layer's.

    Prints as a table from the last layer down. With a causal head, a position speaks of the token after it.
    """

    tokens: tuple[str, ...]
    best: tuple[tuple[str, ...], ...]
    probability: np.ndarray     # (L + 1, T)
    divergence: np.ndarray      # (L + 1, T): KL(last layer || this layer), in nats

    def cells(self) -> list[tuple[str, ...]]:
        last = len(self.best) - 1
        body = [(str(i) if i else "embed", f"{self.divergence[i].mean():.2f}", *self.best[i]) for i in range(last, -1, -1)]
        return [("layer", "KL", *self.tokens), *body]

    def draw(self, axes: Any = None) -> Any:
        """The likeliest tokens, on a ground that is darker where they are likelier. Returns: matplotlib's axes."""
        axes = new_axes(1.5 + 0.8 * len(self.tokens), 1.0 + 0.4 * len(self.best))[0, 0] if axes is None else axes
        draw_squares(axes, self.probability, self.best)
        axes.set(xticks=range(len(self.tokens)), xticklabels=self.tokens, yticks=range(len(self.best)), ylabel="layer", title="logit lens: likeliest token by layer")
        return axes


@torch.no_grad()
def logit_lens(model: Model, tok: Tokenizer, text: str) -> LogitLens:
    """The head's answer to every hidden state: p_i = softmax(head(norm(h_i))); of the last layer, the model's own.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens". Deviation: a masked head's dense layer is part of the head.
    Raises: ValueError for a model without a masked or causal head.
    """
    need_vocabulary(model, "the logit lens")
    batch, seen = tok([text]), Trace(False)
    with evaluating(model):
        model.body(**{name: t.to(model.device) for name, t in batch.items()}, trace=seen)      # type: ignore[arg-type]
        *below, last = (state[0] for state in seen.states)
        states = torch.stack([*(one if model.norm is None else model.norm(one) for one in below), last])       # (L + 1, T, D); the last one is normed already
        log_p = model.head.logits(states).float().log_softmax(-1)                # (L + 1, T, V)
    best = log_p.max(-1)
    return LogitLens(tuple(tok.tokens(batch["input_ids"][0])), tuple(tuple(tok.decode([i], skip_specials=False).strip() for i in row) for row in best.indices.tolist()),
                     best.values.exp().cpu().numpy(), (log_p[-1].exp() * (log_p[-1] - log_p)).sum(-1).cpu().numpy())
