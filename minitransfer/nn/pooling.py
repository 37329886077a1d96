"""One vector for a whole text or image: which position is read, and what is done to it."""
from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops.linear import Linear
from .norms import make_norm


def first_token(x: Float[Tensor, "B T D"], keep: Bool[Tensor, "B T"]) -> Float[Tensor, "B D"]:
    """The first token of each text: not position 0 under left padding."""
    return x[torch.arange(len(x), device=x.device), keep.int().argmax(-1)]


def last_token(x: Shaped[Tensor, "B T D"], keep: Bool[Tensor, "B T"]) -> Shaped[Tensor, "B D"]:
    """The last token of each text, right for either padding side."""
    T = x.shape[1]
    last = (torch.arange(T, device=x.device) * keep).argmax(-1)                  # (B,)
    return x[torch.arange(len(last), device=last.device), last]


def mean_token(x: Float[Tensor, "B T D"], keep: Bool[Tensor, "B T"]) -> Float[Tensor, "B D"]:
    """The mean over each text's tokens; none: zeros."""
    return (x * keep[..., None]).sum(1) / keep.sum(1, keepdim=True).clamp(min=1)


def end_token(x: Float[Tensor, "B T D"], keep: Bool[Tensor, "B T"], ids: Int[Tensor, "B T"], end_id: int | None) -> Float[Tensor, "B D"]:
    """The token that ends each text: the first one with the id `end_id`, or, without such an id, the first one with the largest id.

    Raises: ValueError for a text without it.
    """
    wanted = ids.masked_fill(~keep, -1) if end_id is None else (ids == end_id) & keep
    if end_id is not None and ids.device.type == "cpu" and len(rows := (~wanted.any(-1)).nonzero()):
        raise ValueError(f"row {int(rows[0])} has no token {end_id}; a text is read where it ends: let the tokenizer put its last token, and do not cut it off")
    return x[torch.arange(len(x), device=x.device), wanted.int().argmax(-1)]


def make_pooler(c: ModelConfig) -> nn.Module:
    """What is applied to the token that stands for its text."""
    if c.pooler_kind == "dense":
        return Linear(c.d_model, c.d_model)
    return make_norm(c) if c.pooler_kind == "norm" else nn.Identity()


def pool(pooler: nn.Module | None, c: ModelConfig, x: Float[Tensor, "B T D"], keep: Bool[Tensor, "B T"], ids: Int[Tensor, "B _"] | None) -> Float[Tensor, "B D"] | None:
    """The pooled vector, as the config says; None without a pooler. `ids` (B, T) are read for a text that is pooled where it ends, and only then."""
    if pooler is None:
        return None
    if c.pooler_kind == "end":
        assert ids is not None
        return pooler(end_token(x, keep, ids, c.end_id))
    pooled = pooler(first_token(x, keep))
    return torch.tanh(pooled) if c.pooler_kind == "dense" else pooled
