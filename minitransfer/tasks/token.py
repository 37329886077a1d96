"""One label for every word: entities, parts of speech. A word's label stands at its first piece; its other pieces are no targets."""
from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..nn.heads import IGNORE
from ..nn.model import Model
from ..text import LabelledBatches, Tokenizer, TruncationWarning
from ..text.readers import column
from .base import in_batches
from .sequence import check_unseen, label_set


@dataclass(frozen=True)
class WordPrediction:
    """A word, its likeliest label and the label's probability. A word that was cut off, or has no piece in this vocabulary, has none."""

    word: str
    label: str | None
    probability: float


def first_pieces(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """For each word the position of its first piece, in the text of these words joined by spaces; None if it has none.

    Args: offsets: (start, end) in characters of each token, (0, 0) at special tokens. A piece belongs to the word its last character is in:
          a byte-level piece may begin with the space before the word.
    """
    owner = np.repeat(np.arange(len(words)), [len(word) + 1 for word in words])
    found: dict[int, int] = {}
    for position, (start, end) in enumerate(offsets):
        if end > start:
            found.setdefault(int(owner[end - 1]), position)
    return [found.get(i) for i in range(len(words))]


def places_of(sentences: Sequence[Sequence[str]], tok: Tokenizer, max_length: int | None) -> list[list[int | None]]:
    """`first_pieces` of every sentence, after truncation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)      # the batches of the same texts say it
        found = tok.encodings([" ".join(words) for words in sentences], max_length=max_length)
    return [first_pieces(words, encoding.offsets) for words, encoding in zip(sentences, found, strict=True)]


class TokenBatches:
    """`LabelledBatches` of the joined words, whose labels here are row numbers, with the words' own labels put at their first pieces."""

    def __init__(self, sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], tok: Tokenizer, labels: Sequence[str],
                 batch_size: int | None, max_tokens: int | None, max_length: int | None, seed: int):
        rows = [{"text": " ".join(words), "label": i} for i, words in enumerate(sentences)]
        self.plain = LabelledBatches(rows, tok, [str(i) for i in range(len(rows))], batch_size=batch_size, max_tokens=max_tokens,
                                     max_length=max_length, seed=seed)
        number = {name: i for i, name in enumerate(labels)}
        self.targets = [[(place, number[str(tag)]) for place, tag in zip(places, row, strict=True) if place is not None]
                        for places, row in zip(places_of(sentences, tok, max_length), tags, strict=True)]

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        batch = self.plain[k]
        labels = torch.full(batch["input_ids"].shape, IGNORE)                      # (B, T)
        for row, number in enumerate(batch["labels"].tolist()):
            for place, label in self.targets[number]:
                labels[row, place] = label
        return batch | {"labels": labels}


def sentences_of(rows: Sequence[dict], words: str, tags: str, split: str) -> tuple[list[list[str]], list[list[str]]]:
    """The words and the tags. Raises: ValueError for a row in which they are not lists of equal length with a word at least."""
    both = list(zip(column(rows, words), column(rows, tags), strict=True))
    for i, (one, labels) in enumerate(both):
        if not isinstance(one, list | tuple) or not isinstance(labels, list | tuple) or len(one) != len(labels) or not one:
            raise ValueError(f"{split} row {i}: {words!r} is {one!r} and {tags!r} is {labels!r}; lists of equal length with a word at least are "
                             "needed: give one tag for each word")
    return [list(one) for one, _ in both], [[str(tag) for tag in labels] for _, labels in both]


@dataclass(frozen=True)
class TokenTask:
    """Rows of words with a tag each, as `read_rows` gives them from CoNLL files."""

    name: ClassVar[str] = "token"
    head: ClassVar[str] = "token"
    best: ClassVar[str] = "accuracy higher"
    words: str = "words"
    tags: str = "tags"

    @property
    def columns(self) -> dict[str, Any]:
        return asdict(self)

    def labels(self, train: Sequence[dict], validation: Sequence[dict]) -> list[str]:
        """Sorted, from the training rows alone. Raises: ValueError for tags that do not fit the words, or that training lacks."""
        found = label_set([tag for tags in sentences_of(train, self.words, self.tags, "training")[1] for tag in tags])
        for i, tags in enumerate(sentences_of(validation, self.words, self.tags, "validation")[1] if validation else []):
            check_unseen(tags, found, f"validation row {i}, word")
        return found

    def batches(self, rows: Sequence[dict], tok: Tokenizer, labels: Sequence[str], batch_size: int | None, max_tokens: int | None,
                max_length: int | None, seed: int) -> TokenBatches:
        return TokenBatches(*sentences_of(rows, self.words, self.tags, "a"), tok, labels, batch_size, max_tokens, max_length, seed)

    def predict(self, model: Model, tok: Tokenizer, texts: Sequence[str | Sequence[str]], pairs: Sequence[str] | None, batch_size: int,
                max_length: int | None) -> list[list[WordPrediction]]:
        """Texts are lists of words, or strings, which are cut at spaces."""
        if pairs is not None:
            raise ValueError("pairs for a token task; it labels the words of one text: leave pairs out")
        sentences = [text.split() if isinstance(text, str) else list(text) for text in texts]
        ids, type_ids = tok.encode_rows([" ".join(words) for words in sentences], None, max_length)
        found, names = in_batches(model, tok, ids, type_ids, batch_size), model.labels or []
        answers = []
        for i, (words, places) in enumerate(zip(sentences, places_of(sentences, tok, max_length), strict=True)):
            p, best = found[i].max(-1)                                             # (T,), (T,)
            answers.append([WordPrediction(word, None, 0.0) if place is None else WordPrediction(word, names[int(best[place])], float(p[place]))
                            for word, place in zip(words, places, strict=True)])
        return answers
