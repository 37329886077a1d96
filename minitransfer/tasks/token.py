"""One label for every word: entities, parts of speech. A word's label stands at its first piece; its other pieces are no targets."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..nn.heads import IGNORE
from ..nn.model import Model
from ..text import LabelledBatches, Tokenizer
from ..text.readers import column
from .base import in_batches
from .sequence import check_unseen, label_set


@dataclass(frozen=True)
class WordPrediction:
    """A word, its likeliest label and the label's probability. A word that was cut off, or has no piece in this vocabulary, has no label."""

    word: str
    label: str | None
    probability: float


def first_pieces(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> list[int | None]:
    """For each word the position of its first piece, in a text of these words joined by spaces; None if it has none.

    Args: offsets: (start, end) of each token in the text; (0, 0) at special tokens. A piece belongs to the word that its last character is in, since
          byte-level pieces may begin with the space before the word.
    """
    owner, first = np.repeat(np.arange(len(words)), [len(word) + 1 for word in words]), [None] * len(words)
    found: dict[int, int] = {}
    for position, (start, end) in enumerate(offsets):
        if end > start:
            found.setdefault(int(owner[end - 1]), position)
    return [found.get(i, first[i]) for i in range(len(words))]


def check_words(rows: Sequence[dict], words: str, tags: str, split: str) -> None:
    """Raises: ValueError for a row whose words and tags are not lists of equal length, or that has no word."""
    for i, (one, labels) in enumerate(zip(column(rows, words), column(rows, tags), strict=True)):
        if not isinstance(one, list | tuple) or not isinstance(labels, list | tuple) or len(one) != len(labels) or len(one) == 0:
            raise ValueError(f"{split} row {i}: {words!r} and {tags!r} are to be lists of equal length, with a word at least, and are {one!r} and {labels!r}: "
                             "give one tag for each word")


class TokenBatches:
    """`LabelledBatches` of the joined words, whose labels are row numbers here, with the words' labels put at their first pieces."""

    def __init__(self, rows: Sequence[dict], tok: Tokenizer, labels: Sequence[str], words: str, tags: str, batch_size: int | None, max_tokens: int | None,
                 max_length: int | None, seed: int):
        number = {name: i for i, name in enumerate(labels)}
        texts = [" ".join(one) for one in column(rows, words)]
        numbered = [{"text": text, "label": i} for i, text in enumerate(texts)]
        self.plain = LabelledBatches(numbered, tok, [str(i) for i in range(len(rows))], batch_size=batch_size, max_tokens=max_tokens, max_length=max_length, seed=seed)
        self.targets = []
        for row, text in zip(rows, texts, strict=True):
            places = first_pieces(row[words], tok.encodings([text])[0].offsets if max_length is None else tok.backend.encode(text).offsets)
            self.targets.append([(place, number[str(tag)]) for place, tag in zip(places, row[tags], strict=True) if place is not None])

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        batch = self.plain[k]
        labels = torch.full(batch["input_ids"].shape, IGNORE)                      # (B, T)
        for row, number in enumerate(batch["labels"].tolist()):
            for place, label in self.targets[number]:
                if place < labels.shape[1] and batch["attention_mask"][row, place]:
                    labels[row, place] = label
        return batch | {"labels": labels}
