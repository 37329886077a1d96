"""Prefix tuning: P learned keys and values in every block, which every query sees before those of the text. The model itself is frozen.

    attention(q, [P_k; k], [P_v; v])        P_k, P_v: (P, K Dh) per block;  2 L P K Dh parameters

The text's positions start at P, as if the prefix were tokens: a text may be P tokens shorter.
Source: Li & Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", section 4. Differs from it: the keys and values are trained
directly and not through a network; they start as those of random tokens (their section 7.4: real activations are the better start).
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..config import NoAttention
from ..nn.encoder_decoder import EncoderDecoder
from ..nn.evaluating import evaluating
from ..nn.model import Model
from .groups import TrainableReport, fresh_names, set_trainable, trainable_report


class Prefix(nn.Module):
    """The keys and values of one block, and what puts them before the others."""

    def __init__(self, length: int, width: int, d_head: int, device: torch.device):
        super().__init__()
        self.length, self.d_head, self.active = length, d_head, True
        self.keys, self.values = (nn.Parameter(torch.zeros(length, width, device=device)) for _ in range(2))

    def forward(self, k: Float[Tensor, "B K S Dh"], v: Float[Tensor, "B K S Dh"]) -> tuple[Float[Tensor, "B K N Dh"], Float[Tensor, "B K N Dh"]]:
        if not self.active:
            return k, v
        return self.before(self.keys, k), self.before(self.values, v)

    def before(self, learned: Float[Tensor, "P _"], given: Float[Tensor, "B K S Dh"]) -> Float[Tensor, "B K N Dh"]:
        by_head = learned.to(given.dtype).unflatten(-1, (-1, self.d_head)).transpose(0, 1)      # (K, P, Dh)
        return torch.cat([by_head.expand(len(given), -1, -1, -1), given], dim=2)                # (B, K, P + S, Dh)

    def extra_repr(self) -> str:
        return f"{self.length} learned keys and values"


def prefixes(model: nn.Module) -> dict[str, Prefix]:
    """Name -> the prefix of each block; empty for a model without one."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Prefix)}


def prefix_names(model: nn.Module) -> list[str]:
    """The names of the learned keys and values."""
    return [f"{name}.{part}" for name in prefixes(model) for part in ("keys", "values")]


def check_room(model: Model, length: int, what: str) -> None:
    """Raises: ValueError for a length below 1, or one that leaves the texts no position; or a model that has such a thing already."""
    if isinstance(model.config, NoAttention):
        raise ValueError(f"a {what} in a body without attention; nothing there looks at learned positions: choose full, discriminative or ulmfit for this model")
    if isinstance(model, EncoderDecoder):
        raise ValueError(f"a {what} for an encoder-decoder; it would stand before two kinds of text, and is made for one stack: use add_lora, or another strategy")
    if sum(model.ahead):
        raise ValueError(f"this model has a {'prefix' if model.ahead[0] else 'soft prompt'} already; it has one at a time: call remove_adapters(model) first")
    if not 1 <= length < model.config.max_len:
        raise ValueError(f"a {what} of length={length} in a model that reads {model.config.max_len} positions; the texts need some of these: "
                         f"give 1 to {model.config.max_len - 1}, 10 to 100 are usual")


def insert_prefix(model: Model, length: int) -> None:
    """Zeros for keys and values, in every block: the caller fills them."""
    for attn in attentions(model):
        attn.prefix = Prefix(length, attn.k_proj.out_features, attn.d_head, model.device)


def attentions(model: Model) -> Iterator[Any]:
    """The attention of each block that may have a prefix, from the bottom: none of an encoder-decoder."""
    for block in () if isinstance(model, EncoderDecoder) else model.blocks:
        if hasattr(block, "attn"):
            yield block.attn


class Listener(nn.Module):
    """Stands where a prefix would, adds nothing, and keeps the keys and values that it is given: normed and turned, where the model does that."""

    length, active = 0, True
    seen: tuple[Tensor, Tensor]

    def forward(self, k: Float[Tensor, "1 K T Dh"], v: Float[Tensor, "1 K T Dh"]) -> tuple[Tensor, Tensor]:
        self.seen = k, v
        return k, v


@torch.no_grad()
def keys_and_values(model: Model, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The keys and values of these tokens in each block, (T, K Dh) each."""
    every = list(attentions(model))
    listeners = [Listener() for _ in every]
    try:
        for attn, listener in zip(every, listeners, strict=True):
            attn.prefix = listener
        with evaluating(model):
            model.body(ids[None])
    finally:
        remove_prefix(model)
    return [tuple(t[0].transpose(0, 1).flatten(1) for t in listener.seen) for listener in listeners]     # type: ignore[misc]


def add_prefix(model: Model, length: int = 20, seed: int = 0) -> TrainableReport:
    """Give every block a prefix, and freeze everything but it and a task's head. The outputs change at once: there is more to look at.

    Args:    length: P. seed: draws the tokens whose keys and values it starts as.
    Returns: the report of what trains now.
    Raises:  ValueError for a length out of range, or a model with a prefix or soft prompt.
    """
    check_room(model, length, "prefix")
    ids = torch.randint(model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))
    start = keys_and_values(model, ids.to(model.device))
    insert_prefix(model, length)
    for prefix, (k, v) in zip(prefixes(model).values(), start, strict=True):
        prefix.keys.data.copy_(k)
        prefix.values.data.copy_(v)
    set_trainable(model, {*prefix_names(model), *fresh_names(model)})
    return trainable_report(model)


def remove_prefix(model: Model) -> None:
    """Take the prefix out; the model then answers as its base, bit for bit."""
    for attn in attentions(model):
        attn.prefix = None
