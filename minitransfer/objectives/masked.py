"""Predict hidden tokens from both sides."""
from __future__ import annotations

import math
import string

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..nn.heads import IGNORE
from ..nn.model import Model
from ..ops import mask_tokens, token_kinds
from ..ops.dispatch import within_reach
from ..text.tokenizer import Tokenizer
from .base import ask_head, tokens_of

WORD_STARTS = ("Ġ", "▁", "Ċ")  # byte-level BPE and unigram mark the first piece of a word (Ċ is a line break), WordPiece the others, with ##


def inside_words(tokens: list[str]) -> Bool[Tensor, "V"]:
    """For each token of a vocabulary: is it a piece of a word other than its first?

    Raises: ValueError for a vocabulary that marks neither the beginning nor the inside of words.
    """
    if any(token.startswith("##") for token in tokens):
        return torch.tensor([token.startswith("##") for token in tokens])
    if any(token.startswith(WORD_STARTS) for token in tokens):
        return torch.tensor([not token.startswith((*WORD_STARTS, *string.punctuation)) for token in tokens])  # punctuation belongs to no word
    raise ValueError('whole_word=True with a vocabulary in which no token starts with "##", "Ġ" or "▁"; it needs to know where words begin: '
                     "use a WordPiece, byte-level BPE or unigram tokenizer, or whole_word=False")


class Masked:
    """-sum over hidden positions t of log p(x[t] | the text with hidden positions), drawn anew at every step.

    Each ordinary token (never a special one, never padding) is chosen with `probability`; of the chosen, 80 % become the mask token,
    10 % an ordinary token drawn at random and 10 % stay as they are. Only chosen positions reach the vocabulary projection.
    With `whole_word` one draw decides for all pieces of a word.

    Args:   probability: in (0, 1].
    Raises: ValueError for a tokenizer without a mask token, a probability outside (0, 1], or whole words in a vocabulary that does not mark them.
    Source: Devlin et al. 2019, section 3.1 and appendix A.1; whole words as in the authors' later release. Deviations: every position is
            drawn for itself (the authors hide a fixed number per text), and a random replacement is never a special token.
    """

    name = "masked"

    def __init__(self, tok: Tokenizer, probability: float = 0.15, whole_word: bool = False):
        if tok.mask_id is None:
            raise ValueError("a tokenizer without a mask token; masked pretraining puts it in the place of others: train a tokenizer that has one, "
                             'or use objective="causal"')
        if not 0 < probability <= 1:
            raise ValueError(f"probability={probability}; it is the share of tokens to hide, in (0, 1]: the usual value is 0.15")
        self.mask_id, self.probability = tok.mask_id, probability
        self.special = torch.zeros(tok.vocab_size, dtype=torch.bool)
        self.special[list(tok.special_ids)] = True
        self.ordinary = (~self.special).nonzero()[:, 0]                          # ids a random replacement may take
        self.inside = inside_words(tok.tokens(range(tok.vocab_size))) if whole_word else None

    def most_targets(self, n: int) -> int:
        """How many of n positions are hidden at most: six deviations above the mean, exceeded once in 1e9 batches; beyond, the last ones go unscored."""
        return min(n, math.ceil(n * self.probability + 6 * math.sqrt(n * self.probability * (1 - self.probability))))

    def draw(self, input_ids: Int[Tensor, "B T"], keep: Bool[Tensor, "B T"],
             generator: torch.Generator) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
        """Returns: the ids with hidden positions, and labels that hold the true id there and IGNORE elsewhere."""
        self.special, self.ordinary = self.special.to(input_ids.device), self.ordinary.to(input_ids.device)
        if within_reach("mask_tokens", input_ids, lambda: "whole words" if self.inside is not None else ""):
            random = torch.randint(2**62, (2,), generator=generator, device=input_ids.device)
            return mask_tokens(input_ids, keep, token_kinds(self.special), self.ordinary, self.mask_id, self.probability, random, IGNORE)

        def uniform() -> Tensor:
            return torch.rand(input_ids.shape, generator=generator, device=input_ids.device)

        ordinary = keep & ~self.special[input_ids]
        chance = uniform()
        if self.inside is not None:
            chance = chance.gather(1, self.words(input_ids, ordinary))
        chosen = ordinary & (chance < self.probability)
        labels = input_ids.masked_fill(~chosen, IGNORE)
        fate = uniform()                                                         # [0, 0.8): mask, [0.8, 0.9): random, the rest stays
        other = self.ordinary[torch.randint(len(self.ordinary), input_ids.shape, generator=generator, device=input_ids.device)]
        inputs = torch.where(chosen & (fate >= 0.8) & (fate < 0.9), other, input_ids)
        return inputs.masked_fill(chosen & (fate < 0.8), self.mask_id), labels

    def words(self, input_ids: Int[Tensor, "B T"], ordinary: Bool[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """The number of each position's word in its row; the first piece after a special token or padding starts a word whatever it looks like."""
        assert self.inside is not None
        self.inside = self.inside.to(input_ids.device)
        inside = self.inside[input_ids] & ordinary
        inside[:, 1:] &= ordinary[:, :-1]
        inside[:, 0] = False
        return (~inside).cumsum(1) - 1

    def __call__(self, model: Model, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, int | Tensor]:
        inputs, labels = self.draw(batch["input_ids"], tokens_of(batch), generator)
        return ask_head(model, batch, inputs, labels)
