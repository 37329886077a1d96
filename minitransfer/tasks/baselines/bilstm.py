"""A recurrent network over word vectors, forwards and backwards: what tasks were given before whole networks were pretrained."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from ...nn.heads import IGNORE
from ...text.batches import by_length
from ...training.seeds import mix, own_randomness
from .base import Given, WordVectors, shape

EPOCHS, BATCH, LR, WIDTH = 20, 32, 3e-3, 100        # WIDTH: of one direction, and of vectors that are learned
UNKNOWN = ""

Loss = Callable[[Tensor, Tensor], Tensor]           # outputs and targets of a batch -> a mean
Sentences = Sequence[Sequence[str]]


class LearnedVectors(nn.Module):
    """A vector for every word that training has twice or more, drawn at random and learned; other words share one with those of their shape."""

    def __init__(self, sentences: Sentences, lower: bool):
        super().__init__()
        self.lower = lower
        counts = Counter(self.form(word) for sentence in sentences for word in sentence)
        shapes = {shape(word) for word, n in counts.items() if n == 1}
        self.place = {word: i for i, word in enumerate(sorted({UNKNOWN, *shapes, *(word for word, n in counts.items() if n > 1)}))}
        self.table, self.width = nn.Embedding(len(self.place), WIDTH), WIDTH

    def form(self, word: str) -> str:
        return word.lower() if self.lower else word

    def row(self, word: str) -> int:
        return next((self.place[form] for form in (self.form(word), shape(self.form(word))) if form in self.place), self.place[UNKNOWN])

    def forward(self, sentences: Sentences) -> Float[Tensor, "B T D"]:
        return self.table(pad_sequence([torch.tensor([self.row(word) for word in one]) for one in sentences], True))


class FrozenVectors(nn.Module):
    """The vectors of a file; 0 for a word that it does not have."""

    def __init__(self, vectors: WordVectors):
        super().__init__()
        self.vectors, self.width = vectors, len(vectors.zero)

    def forward(self, sentences: Sentences) -> Float[Tensor, "B T D"]:
        def look_up(word: str) -> Tensor:
            found = self.vectors.find(word)
            return torch.from_numpy(self.vectors.zero if found is None else found)
        return pad_sequence([torch.stack([look_up(word) for word in one]) for one in sentences], True)


class BiLSTM(nn.Module):
    """(B, n) from the maximum over the words of each unit, or with `per_word` (B, T, n).

    Source: Graves & Schmidhuber 2005; the maximum over time: Collobert et al. 2011, "Natural Language Processing (Almost) from Scratch".
    """

    def __init__(self, embed: LearnedVectors | FrozenVectors, n: int, per_word: bool):
        super().__init__()
        self.embed, self.per_word = embed, per_word
        self.lstm = nn.LSTM(embed.width, WIDTH, batch_first=True, bidirectional=True)
        self.dropout, self.out = nn.Dropout(0.5), nn.Linear(2 * WIDTH, n)

    def forward(self, sentences: Sentences) -> Tensor:
        lengths = torch.tensor([len(one) for one in sentences])
        packed = pack_padded_sequence(self.dropout(self.embed(sentences)), lengths, True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], True, 0.0 if self.per_word else float("-inf"))       # (B, T, 2 WIDTH)
        return self.out(self.dropout(states if self.per_word else states.amax(1)))


def bilstm(given: Given, sentences: Sentences, targets: Sequence[Tensor], n: int, loss: Loss, per_word: bool = False) -> tuple[Callable[[Sentences], list[Tensor]], int]:
    """Train on sentences of words, each with a target; 20 epochs of Adam, the same bits for the same seed.

    Args:    targets: of one shape; with `per_word` (T,) each, which are padded with IGNORE.
    Returns: sentences -> (n,) or (T, n) each, and the number of parameters that learned.
    """
    with own_randomness(torch.device("cpu")):
        torch.default_generator.manual_seed(mix(given.seed, "bilstm"))
        model = BiLSTM(FrozenVectors(given.vectors) if given.vectors else LearnedVectors(sentences, not per_word), n, per_word)
        optimizer = torch.optim.Adam(model.parameters(), LR)
        for _ in range(EPOCHS):
            for part in torch.randperm(len(sentences)).split(BATCH):
                wanted = [targets[i] for i in part]
                error = loss(model([sentences[i] for i in part]), pad_sequence(wanted, True, IGNORE) if per_word else torch.stack(wanted))
                optimizer.zero_grad()
                error.backward()
                clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
    model.eval()

    @torch.no_grad()
    def answer(asked: Sentences) -> list[Tensor]:
        if given.vectors:
            given.vectors.need(word for one in asked for word in one)
        found: dict[int, Tensor] = {}
        for part in by_length(asked, BATCH):
            found |= {i: one[: len(asked[i])] if per_word else one for i, one in zip(part, model([asked[i] for i in part]), strict=True)}
        return [found[i] for i in range(len(asked))]
    return answer, sum(p.numel() for p in model.parameters())
