"""Do attention heads look where syntax looks? For every head: how often the word it attends to most is the word's head in the tree, or one that depends on it."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from ..nn.encoder_decoder import EncoderDecoder
from ..nn.evaluating import evaluating
from ..nn.model import Model
from ..nn.trace import Trace
from ..tasks.intervals import Bootstrap, ratio
from ..tasks.token import pieces_of
from ..text import Tokenizer
from ..transfer.groups import Table
from .examples import random_twin
from .tables import Interval, draw_squares, interval, new_axes
from .treebank import FARTHEST, Sentence, Treebank, read_treebank

RARE = 50       # relations with fewer words in the half of the sentences that is counted are not listed
OFFSETS = [offset for offset in range(-FARTHEST, FARTHEST + 1) if offset]


@dataclass(frozen=True)
class RelationRow:
    """A relation, the head that finds it best, and what always looking so many words away finds; both chosen on other sentences than those counted."""

    relation: str
    words: int
    block: int
    head: int
    way: str                    # "to": the word looks at its head; "from": its head looks at the word
    accuracy: Interval
    offset: int
    offset_accuracy: Interval
    twin: Interval              # the best head of random weights, chosen likewise


@dataclass(frozen=True, repr=False)
class HeadAccuracy(Table):
    """How well heads of attention find the head of a word. Prints as a table of relations; `draw` shows all heads.

    accuracy: (L, H), of all relations, over all sentences, in whichever direction is better: from the word to its head or from the head to the word.
    """

    note = "To: the word looks at its head; from: its head looks at the word. Attention head and offset were chosen on other sentences than those counted."
    accuracy: np.ndarray
    rows: tuple[RelationRow, ...]

    def cells(self) -> list[tuple[str, ...]]:
        body = [(r.relation, str(r.words), f"{r.block}.{r.head} {r.way}", str(r.accuracy), f"{r.offset:+d}", str(r.offset_accuracy), str(r.twin)) for r in self.rows]
        return [("relation", "words", "head", "accuracy", "offset", "its accuracy", "random twin"), *body]

    def draw(self, axes: Any = None) -> Any:
        """A square for each head. Returns: matplotlib's axes."""
        axes = new_axes(1.5 + 0.6 * self.accuracy.shape[1], 1.2 + 0.5 * len(self.accuracy))[0, 0] if axes is None else axes
        draw_squares(axes, self.accuracy, [[f"{value:.2f}" for value in row] for row in self.accuracy], float(self.accuracy.max()))
        axes.set(xlabel="head", ylabel="block", xticks=range(self.accuracy.shape[1]), yticks=range(len(self.accuracy)), title="words whose head is attended to most")
        return axes


def by_words(probs: Float[np.ndarray, "L H T T"], pieces: Sequence[Sequence[int]]) -> Float[np.ndarray, "L H W W"]:
    """Attention from word to word: the mean over the pieces that look of the sum over the pieces looked at; nothing to oneself. Source: Clark et al. 2019, section 4.1."""
    T = probs.shape[-1]
    member = np.zeros((len(pieces), T))
    for word, positions in enumerate(pieces):
        member[word, list(positions)] = 1
    looked = (member / member.sum(1, keepdims=True).clip(1)) @ probs @ member.T
    looked[..., np.arange(len(pieces)), np.arange(len(pieces))] = -1
    return looked


def guesses(model: Model, tok: Tokenizer, sentence: Sentence) -> Int[np.ndarray, "G W"]:
    """For each word the word that each attention head would call its head, counted from 0: 2 L H guesses, first the words that it looks at, then those that look at it."""
    encoding = tok.encodings([" ".join(sentence.words)], max_length=10**9)[0]
    batch, seen = tok.collate([encoding.ids], [encoding.type_ids]), Trace(True)
    with evaluating(model), torch.no_grad():
        model.body(**{name: t.to(model.device) for name, t in batch.items()}, trace=seen)      # type: ignore[arg-type]
    looked = by_words(torch.stack(seen.probs)[:, 0].float().cpu().numpy(), pieces_of(sentence.words, encoding.offsets))
    return np.concatenate([each.argmax(-1).reshape(-1, len(sentence.words)) for each in (looked, looked.swapaxes(-1, -2))])


def asked(sentence: Sentence) -> Bool[np.ndarray, "W"]:
    """Words that have a head and are no punctuation."""
    return (np.array(sentence.heads) > 0) & (np.array(sentence.relations) != "punct")


def right_guesses(model: Model, tok: Tokenizer, sentences: Sequence[Sentence]) -> Bool[np.ndarray, "G N"]:
    """Which guesses are right, for the words asked for in all sentences."""
    return np.concatenate([(guesses(model, tok, one) == np.array(one.heads) - 1)[:, asked(one)] for one in sentences], 1)


@dataclass(frozen=True)
class Words:
    """The words asked for: their relations, and the numbers of their sentences."""

    relation: np.ndarray
    sentence: np.ndarray

    def best(self, right: Bool[np.ndarray, "G N"], relation: str) -> tuple[int, Interval]:
        """The guess that is right most often in every second sentence, and how often it is in the others."""
        mine = self.relation == relation
        chosen = int(right[:, mine & (self.sentence % 2 == 0)].sum(1).argmax())
        counted = mine & (self.sentence % 2 == 1)
        sums, n = Bootstrap(2), int(self.sentence.max()) + 1
        sums.add(np.stack([np.bincount(self.sentence[counted], right[chosen, counted], n), np.bincount(self.sentence[counted], minlength=n)], 1))
        return chosen, interval(sums, ratio(0, 1))


def head_accuracy(model: Model, tok: Tokenizer, treebank: Treebank, sentences: int | None = 500, seed: int = 0) -> HeadAccuracy:
    """How often the word that an attention head looks at most is the word's head in the dependency tree, or the other way round.

    Punctuation is left out, and sentences longer than the model reads. With as many heads as a model has, one is right by chance: for each relation the best head is
    chosen on every second sentence and counted on the others, beside the best fixed offset and the best head of a twin with random weights, chosen likewise.

    Args:   treebank: a .conllu file, or sentences with heads; sentences: so many are drawn; None: all.
    Source: Clark et al. 2019, section 4.2. Intervals: bootstrap over sentences.
    Raises: ValueError for sentences without heads, fewer than two of them, or a model without attention or with two stacks.
    """
    if isinstance(model, EncoderDecoder) or not hasattr(model.blocks[0], "attn"):
        raise ValueError(f"attention heads of a {type(model).__name__}; one stack of blocks with attention is needed: load an encoder or a decoder")
    chosen = [one for one in read_treebank(treebank, sentences, seed) if any(one.heads) and len(tok.encode(" ".join(one.words))) <= model.longest]
    if len(chosen) < 2:
        raise ValueError(f"{len(chosen)} sentences with heads; the best attention head is chosen on one half and counted on the other: give a .conllu file with two or more")
    words = Words(np.concatenate([np.array(one.relations)[asked(one)] for one in chosen]), np.concatenate([np.full(asked(one).sum(), i) for i, one in enumerate(chosen)]))
    right, random = (right_guesses(each, tok, chosen) for each in (model, random_twin(model, seed)))
    distance = np.concatenate([(np.array(one.heads) - np.arange(1, len(one.heads) + 1))[asked(one)] for one in chosen])
    offsets = distance == np.array(OFFSETS)[:, None]
    L, H = model.config.n_layers, model.config.n_heads
    rows = []
    for relation, n in Counter(words.relation[words.sentence % 2 == 1].tolist()).most_common():
        if n >= RARE:
            (head, score), (offset, offset_score), (_, twin) = (words.best(each, relation) for each in (right, offsets, random))
            rows.append(RelationRow(relation, n, head % (L * H) // H, head % H, "to" if head < L * H else "from", score, OFFSETS[offset], offset_score, twin))
    return HeadAccuracy(right.mean(1).reshape(2, L, H).max(0), tuple(rows))
