"""The head that speaks: a logit for each token of the vocabulary."""
from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops.dropout import Dropout
from ..ops.gather_targets import gather_targets
from ..ops.linear import Linear, linear
from ..ops.linear_cross_entropy import linear_cross_entropy
from .answers import IGNORE, BodyOutput, LossAndCount, Transform, check_fit


def next_tokens(labels: Int[Tensor, "B T"], body: BodyOutput) -> Int[Tensor, "B T"]:
    """The target of each position is the label of the next one, if both are tokens of the same text."""
    targets = labels.new_full(labels.shape, IGNORE)
    joined = body.keep[:, :-1] & body.keep[:, 1:]
    if body.documents is not None:
        joined = joined & (body.documents[:, :-1] == body.documents[:, 1:])
    targets[:, :-1] = labels[:, 1:].masked_fill(~joined, IGNORE)
    return targets


class VocabularyHead(nn.Module):
    """Logits over the vocabulary; the output matrix is the body's token table (tied) or one of its own, `unembed`.

    transform: BERT's dense + activation + norm before the table, and a bias after it; shift: position t predicts token t + 1;
    next_sentence: BERT's second question, does text b follow text a, asked of the pooled first token.
    """

    def __init__(self, c: ModelConfig, tokens: nn.Embedding, transform: bool, shift: bool, next_sentence: bool = False):
        super().__init__()
        self.transform = Transform(c, c.embed_width, c.head_activation or c.activation, norm=True) if transform else None
        self.unembed = None if c.tied else nn.Embedding(c.vocab_size, c.embed_width)
        biased = c.unembed_bias if transform else c.output_bias
        self.bias = nn.Parameter(torch.zeros(c.vocab_size), requires_grad=transform) if biased else None
        self.next_sentence = Linear(c.d_model, 2) if next_sentence else None
        self.next_dropout = Dropout(c.next_dropout)
        self.shift, self.scale = shift, c.logit_scale
        self.tokens = [tokens]  # in a list: shared with the body, registered there only
        self.output: nn.Module | None = None    # a quicker product with the same matrix and bias, for inference
        self.budget: int | None = None          # the loss reads so many rows at most, a number that no value changes; None: as many as have a target

    @property
    def matrix(self) -> Float[Tensor, "V E"]:
        return self.tokens[0].weight if self.unembed is None else self.unembed.weight

    def transformed(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N E"]:
        x = x if self.transform is None else self.transform(x)
        return x if self.scale == 1 else x * self.scale

    def logits(self, x: Float[Tensor, "*N D"]) -> Float[Tensor, "*N V"]:
        x = self.transformed(x)
        return linear(x, self.matrix, self.bias) if self.output is None else self.output(x)

    def forward(self, body: BodyOutput) -> Float[Tensor, "B T V"]:
        return self.logits(body.x)

    def loss(self, body: BodyOutput, labels: Int[Tensor, "B T"]) -> LossAndCount:
        """Only positions with a target reach the vocabulary: with 15 % masked, a seventh of the work."""
        check_fit(labels, len(self.matrix), "tokens")
        if self.shift:
            labels = next_tokens(labels, body)
        if self.budget is not None:
            rows, goals, _ = gather_targets(body.x.flatten(0, 1), labels.flatten(), self.budget)
            return linear_cross_entropy(self.transformed(rows), self.matrix, self.bias, goals), (goals >= 0).sum()
        wanted = (labels != IGNORE).flatten().nonzero()[:, 0]                    # (N,)
        if len(wanted) == 0:
            return body.x.sum() * 0.0, 0
        rows = body.x.flatten(0, 1)[wanted]                                      # (N, D)
        return linear_cross_entropy(self.transformed(rows), self.matrix, self.bias, labels.flatten()[wanted]), len(wanted)

    def next_logits(self, body: BodyOutput) -> Float[Tensor, "B 2"] | None:
        return None if self.next_sentence is None else self.next_sentence(self.next_dropout(body.pooled))
