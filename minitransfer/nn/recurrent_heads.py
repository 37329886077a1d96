"""Heads that came with recurrent bodies: a classifier that reads a text in three ways, and two language models that read it from both ends."""
from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..config import ModelConfig
from ..ops.linear import Linear
from .heads import ONE_CLASS, BodyOutput, LossAndCount, SequenceHead, VocabularyHead, last_token, mean_token
from .norms import make_norm


class ConcatHead(SequenceHead):
    """A `SequenceHead` that reads the last token and the largest and the mean value of all, side by side, through one hidden layer:

        r = [x_last, max_t x_t, mean_t x_t]        logits = W norm(relu(V norm(r)))

    Source: Howard & Ruder 2018, section 3.3. Deviation: layer norms for batch norms, so that no text's answer depends on those beside it.
    """

    HIDDEN = 50

    def __init__(self, c: ModelConfig, n_labels: int, problem: str = ONE_CLASS):
        super().__init__(c, n_labels, problem)
        self.pooling = "concat"
        self.norm_read, self.hidden, self.norm_hidden = make_norm(c, 3 * c.d_model), Linear(3 * c.d_model, self.HIDDEN), make_norm(c, self.HIDDEN)
        self.classifier = Linear(self.HIDDEN, n_labels)

    def reads(self, body: BodyOutput) -> Float[Tensor, "B W"]:
        x, keep = body.x, body.keep[..., None]
        largest = x.masked_fill(~keep, torch.finfo(x.dtype).min).amax(1) * keep.any(1)
        return torch.cat([last_token(x, body.keep), largest, mean_token(x, body.keep)], -1)

    def forward(self, body: BodyOutput) -> Float[Tensor, "B n"]:
        hidden = torch.relu(self.hidden(self.dropout(self.norm_read(self.reads(body)))))
        return self.classifier(self.dropout(self.norm_hidden(hidden)))


class BothWaysHead(nn.Module):
    """Two language models over one vocabulary matrix: the left half of a state, which has read what stands before, predicts the next token, the right half,
    which has read what stands behind, the previous one. The loss is the sum of both, counted per prediction.

    Source: Peters et al. 2018, section 3.1. Deviation: the matrix is the token table.
    """

    def __init__(self, c: ModelConfig, tokens: nn.Embedding):
        super().__init__()
        self.ahead = VocabularyHead(c, tokens, transform=False, shift=True)

    def halves(self, body: BodyOutput) -> tuple[BodyOutput, BodyOutput]:
        """What reads to the right, and what reads to the left, turned round: both then predict the next token."""
        right, left = body.x.chunk(2, -1)
        documents = None if body.documents is None else body.documents.flip(1)
        return BodyOutput(right, body.keep, None, body.documents), BodyOutput(left.flip(1), body.keep.flip(1), None, documents)

    def forward(self, body: BodyOutput) -> Float[Tensor, "B T V"]:
        """Logits of the next token."""
        return self.ahead(self.halves(body)[0])

    def loss(self, body: BodyOutput, labels: Int[Tensor, "B T"]) -> LossAndCount:
        right, left = self.halves(body)
        (a, n), (b, m) = self.ahead.loss(right, labels), self.ahead.loss(left, labels.flip(1))
        return a + b, n + m
