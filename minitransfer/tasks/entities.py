"""Entities from tags: B-X begins an entity of type X, I-X goes on with it, O is outside (IOB2). Strictly, and as tagged text is usually meant."""
from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from .intervals import Bootstrap, ratio

Span = tuple[str, int, int]         # type, number of its first word, number of the word after its last one


def are_iob(tags: Iterable[str]) -> bool:
    """Whether these tags mark entities: each is O, B-X or I-X, and one at least is not O."""
    found = set(tags)
    return bool(found - {"O"}) and all(tag == "O" or (tag[:2] in ("B-", "I-") and len(tag) > 2) for tag in found)


def spans(tags: Sequence[str], strict: bool = False) -> list[Span]:
    """The entities of a sentence.

    Args: strict: an I- that does not go on with an entity of its type is nothing (strict IOB2); else it begins one, as in CoNLL's own evaluation.
    """
    found: list[Span] = []
    kind, start = "", 0
    for i, tag in enumerate([*tags, "O"]):
        goes_on = bool(kind) and tag == f"I-{kind}"
        if kind and not goes_on:
            found.append((kind, start, i))
            kind = ""
        if tag.startswith("B-") or (tag.startswith("I-") and not goes_on and not strict):
            kind, start = tag[2:], i
    return found


def breaks(tags: Sequence[str]) -> list[int]:
    """The words whose I- does not go on with an entity of its type."""
    return [i for i, tag in enumerate(tags) if tag.startswith("I-") and (i == 0 or tags[i - 1][:1] not in ("B", "I") or tags[i - 1][2:] != tag[2:])]


def repaired(tags: Sequence[str]) -> list[str]:
    """The tags with B- where an I- begins an entity: the same entities, now in IOB2. It also turns IOB1 into IOB2."""
    wrong = set(breaks(tags))
    return [f"B-{tag[2:]}" if i in wrong else tag for i, tag in enumerate(tags)]


class EntityCounts:
    """Entities that were found, those that are there, and those that are both; sentences are what is resampled for the intervals."""

    def __init__(self) -> None:
        self.sums = Bootstrap(6)        # both, found, there; strictly, then leniently

    def add(self, truth: Sequence[str], answer: Sequence[str]) -> None:
        """The tags of one sentence."""
        row: list[int] = []
        for strict in (True, False):
            there, found = set(spans(truth, strict)), set(spans(answer, strict))
            row += [len(there & found), len(found), len(there)]
        self.sums.add(row)

    def metrics(self) -> dict[str, float]:
        """entity_precision, entity_recall and entity_f1 of strict IOB2, and entity_f1_lenient: over all entities (micro).

        Lenient is the reading of conlleval: an I- without a B- begins an entity too. It reads more of the answer as entities, so that it may be above or below.
        """
        return {"entities": float(self.sums.total[2])} | self.sums.metrics({
            "entity_precision": ratio(0, 1), "entity_recall": ratio(0, 2), "entity_f1": lambda sums: f1_of(sums[..., :3]),
            "entity_f1_lenient": lambda sums: f1_of(sums[..., 3:])})


def f1_of(sums: ArrayLike) -> np.ndarray:
    """2 both / (found + there), (..., 3) -> (...); 0 if there is nothing."""
    both, found, there = np.moveaxis(np.asarray(sums), -1, 0)
    return np.asarray(2 * both / np.maximum(found + there, 1))
