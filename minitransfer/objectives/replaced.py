"""Tell the tokens that were replaced from those that were not."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..config import ModelConfig
from ..nn.heads import IGNORE, LossAndCount
from ..nn.model import Model
from ..text.tokenizer import Tokenizer
from .base import ask_head, inputs_of, tokens_of
from .masked import Masked


def smaller(c: ModelConfig, share: int | float = 0.25) -> ModelConfig:
    """The generator that suits a discriminator: as deep, with a share of its heads, each as wide as there, and of d_ff; the token table is as wide as there.

    Args:   share: in (0, 1]; the paper's best are 1/4 to 1/2.
    Source: Clark et al. 2020, section 3.2 and table 6.
    """
    if not 0 < share <= 1:
        raise ValueError(f"a generator of {share} times the model's width; it is a share, above 0 and at most 1: 0.25 to 0.5 are usual")
    heads = max(1, round(share * c.n_heads))
    width = heads * c.d_head
    return replace(c, d_model=width, d_embed=None if width == c.embed_width else c.embed_width, n_heads=heads, n_kv_heads=None, d_ff=max(1, round(share * c.d_ff)))


def sample(logits: Float[Tensor, "N V"], draws: torch.Generator) -> Int[Tensor, "N"]:
    """One token from each softmax."""
    return torch.multinomial(logits.float().softmax(-1), 1, generator=draws)[:, 0]


class Replaced:
    """L_masked(generator) + weight L_replaced(discriminator), each the mean over its own targets.

        hidden    = the text, with the mask token at chosen positions
        x'        = the text, with a sample from the generator's p(x[t] | hidden) at these positions
        L_masked  = -mean over chosen t of log p(x[t] | hidden)
        L_replaced = mean over all tokens t of the cross entropy of D(x', t) and [x'[t] differs from x[t]]

    A sample that happens to be right counts as original. No gradient passes through the sampling. The two models share the token table, and the tables of
    positions and token types where these have one shape; norms are their own. As a sum and a count: of N tokens, N L_masked + weight N L_replaced, N; rows that
    stand in one step thus weigh in L_masked as their tokens, not as their masked ones.

    Args:   generator: a model with a masked head, of the discriminator's vocabulary and embedding width (see `smaller`). probability: to be chosen, in (0, 1].
    Source: Clark et al. 2020, sections 2 and 3.2 (weight 50), algorithm 1. Deviations: every position is drawn for itself.
    Raises: ValueError for a generator without a masked head, a weight below zero, and what `Masked` raises.
    """

    name = "replaced"

    def __init__(self, tok: Tokenizer, generator: Model, probability: float = 0.15, weight: int | float = 50.0):
        if generator.head_name != "masked":
            raise ValueError(f'a generator with head="{generator.head_name}"; it fills in masked tokens: give one with head="masked"')
        if not weight >= 0:
            raise ValueError(f"weight={weight}; the discriminator's loss counts so many times, 0 or more: 50 is usual")
        self.masked, self.generator, self.weight = Masked(tok, probability), generator, weight

    def __str__(self) -> str:
        c = self.generator.config
        return f"{self.masked.probability:g} masked, weight {self.weight:g}, generator {c.d_model} wide with {c.n_heads} heads, {c.n_layers} blocks"

    def share_tables(self, model: Model) -> None:
        """From here on the generator reads the model's tables.

        Raises: ValueError for a vocabulary or a width of embeddings that differ.
        """
        generator, (ours, theirs) = self.generator, (self.generator.embed, model.embed)
        if ours.tokens.weight.shape != theirs.tokens.weight.shape:
            raise ValueError(f"a token table of {tuple(ours.tokens.weight.shape)} in the generator and {tuple(theirs.tokens.weight.shape)} in the model; they share one: "
                             "make the generator with smaller(model.config)")
        generator.to(model.device)
        ours.tokens = theirs.tokens
        generator.head.tokens = [theirs.tokens]
        for name in ("positions", "types"):
            mine, shared = getattr(ours, name), getattr(theirs, name)
            if mine is not None and shared is not None and mine.weight.shape == shared.weight.shape:
                setattr(ours, name, shared)

    @contextmanager
    def inside(self, model: Model) -> Iterator[None]:
        """While it lasts the generator is a part of the model: it trains, is measured and goes on from a save with it."""
        self.share_tables(model)
        model.generator = self.generator.train(model.training)
        try:
            yield
        finally:
            del model.generator

    @contextmanager
    def apart(self, model: Model) -> Iterator[None]:
        """While it lasts the model is the discriminator alone, to be saved."""
        del model.generator
        try:
            yield
        finally:
            model.generator = self.generator

    def terms(self, model: Model, batch: dict[str, Tensor], draws: torch.Generator) -> tuple[LossAndCount, LossAndCount]:
        """The sum and the count of the masked loss, and of the replaced one."""
        ids = batch["input_ids"]
        _, targets = self.masked.draw(ids, tokens_of(batch), draws)
        chosen = targets != IGNORE
        body = self.generator.body(**inputs_of(batch, ids.masked_fill(chosen, self.masked.mask_id)))
        with torch.no_grad():
            filled = ids.masked_scatter(chosen, sample(self.generator.head.logits(body.x[chosen]), draws))
        return self.generator.head.loss(body, targets), ask_head(model, batch, filled, (filled != ids).long())

    def __call__(self, model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int | Tensor]:
        if getattr(model, "generator", None) is not self.generator:
            raise ValueError("a replaced objective for a model that its generator is no part of; the two train together: use pretrain, or train within "
                             "`with objective.inside(model)`")
        (masked, m), (replaced, n) = self.terms(model, batch, generator)
        return n * masked / max(m, 1) + self.weight * replaced, n
