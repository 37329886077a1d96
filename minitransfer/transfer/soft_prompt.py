"""Prompt tuning: P learned vectors stand before the text, in the place of token vectors. The model itself is frozen.

    x = [prompt; tokens(ids)] + positions(0 .. P + T - 1)        prompt: (P, E)

From the head's point of view the text is alone: a token head labels T tokens, a classifier reads the text's own first (or last) token.
Source: Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", section 2. Differs from PEFT on encoders: there the pooled
vector is that of the first learned position, here that of the text's first token; hidden states are those of the text.
"""
from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..nn.model import Model
from .groups import TrainableReport, fresh_names, set_trainable, trainable_report
from .prefix import check_room


class SoftPrompt(nn.Module):
    """The learned vectors, and what puts them before those of the tokens."""

    def __init__(self, length: int, width: int, device: torch.device):
        super().__init__()
        self.length, self.active = length, True
        self.vectors = nn.Parameter(torch.zeros(length, width, device=device))

    def forward(self, x: Float[Tensor, "B T E"]) -> Float[Tensor, "B N E"]:
        return torch.cat([self.vectors.to(x.dtype).expand(len(x), -1, -1), x], dim=1)          # (B, P + T, E)

    def extra_repr(self) -> str:
        return f"{self.length} learned vectors"


def soft_prompt_names(model: Model) -> list[str]:
    """The name of the learned vectors, if there are any."""
    return [] if model.embed.prompt is None else ["embed.prompt.vectors"]


def insert_soft_prompt(model: Model, length: int) -> None:
    """Zeros before every text: the caller fills them."""
    model.embed.prompt = SoftPrompt(length, model.config.embed_width, model.device)


def add_soft_prompt(model: Model, length: int = 20, seed: int = 0) -> TrainableReport:
    """Put learned vectors before every text, and freeze everything but them and a task's head. The outputs change at once: there is more to look at.

    Args:    length: P. seed: draws the tokens whose vectors it starts as (Lester et al., section 3.2: "sampled vocabulary").
    Returns: the report of what trains now.
    Raises:  ValueError for a length out of range, or a model with a prefix or soft prompt.
    """
    check_room(model, length, "soft prompt")
    ids = torch.randint(model.config.vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).to(model.device)
    insert_soft_prompt(model, length)
    model.get_parameter("embed.prompt.vectors").data.copy_(model.embed.tokens.weight[ids] * model.embed.scale)
    set_trainable(model, {*soft_prompt_names(model), *fresh_names(model)})
    return trainable_report(model)


def remove_soft_prompt(model: Model) -> None:
    """Take the vectors out; the model then answers as its base, bit for bit."""
    model.embed.prompt = None
