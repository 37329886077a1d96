"""What the baselines of all tasks share: what they are given, and words."""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...text import read_vectors
from ...text.vectors import WORD


@dataclass(frozen=True)
class Given:
    """The task and its labels; the static vectors, if any; the seed of what is drawn."""

    task: Any
    labels: list[str]
    vectors: WordVectors | None = None
    seed: int = 0


Answer = Callable[[Sequence[dict]], list]                                   # rows without labels -> a prediction each, of the kind that `predict` gives
Learn = Callable[[Given, Sequence[dict]], tuple[Answer, int]]               # training rows -> how to answer, and how many numbers were learned


@dataclass(frozen=True)
class Kind:
    """The baselines of one task, and the metrics of their predictions: those of `finetune`, but for the loss."""

    learn: dict[str, Learn]
    measure: Callable[[Given, Sequence[dict], list], dict[str, float]]


def words(text: str) -> set[str]:
    return set(WORD.findall(text.lower()))


def shape(word: str) -> str:
    """What kind of characters a word has, runs as one: "Xx" for Rome, "d-x" for 19-year. Source: Bikel et al. 1999, in a simple form."""
    kinds = ("X" if c.isupper() else "x" if c.isalpha() else "d" if c.isdigit() else c for c in word)
    return re.sub(r"(.)\1+", r"\1", "".join(kinds))


class WordVectors:
    """Vectors from a file, read for the words that are asked for (again only for words that never were), or those of a dictionary.

    Raises: ValueError if none of the first words asked for is in the file; and what `read_vectors` raises.
    """

    def __init__(self, source: str | Path | Mapping[str, np.ndarray], asked: Iterable[str]):
        self.source, self.asked, self.known = source, set[str](), dict[str, np.ndarray]()
        self.need(asked)
        if not self.known:
            whose = "this dictionary" if isinstance(source, Mapping) else source
            raise ValueError(f"{whose} has a vector for none of the {len(self.asked)} words of these rows; some are needed: give vectors of the language of the rows")
        self.zero = np.zeros_like(next(iter(self.known.values())))

    def need(self, asked: Iterable[str]) -> None:
        new = {form for word in asked for form in (word, word.lower())} - self.asked
        if new:
            self.known |= {word: self.source[word] for word in new if word in self.source} if isinstance(self.source, Mapping) else read_vectors(self.source, new)
            self.asked |= new

    def find(self, word: str) -> np.ndarray | None:
        """The vector of the word as it is written, else in lower case, else None."""
        return self.known.get(word, self.known.get(word.lower()))


def mean_vectors(texts: Sequence[str], vectors: WordVectors) -> np.ndarray:
    """The mean of the vectors of the words of each text, (N, D); 0 where none has one."""
    spoken = [WORD.findall(text) for text in texts]
    vectors.need(word for text in spoken for word in text)
    found = ([one for word in text if (one := vectors.find(word)) is not None] for text in spoken)
    return np.stack([np.mean(many, 0) if many else vectors.zero for many in found])
