"""How right an answer is: exact match and F1, as the official evaluations of SQuAD 1.1 and 2.0 define them.

Source: Rajpurkar et al. 2016, section 6.1; 2018, section 5 (questions without an answer).
"""
from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from .intervals import Bootstrap, ratio

PUNCTUATION = frozenset(string.punctuation)


def plain(text: str) -> str:
    """Lower case, without ASCII punctuation, without a, an, the, with single spaces."""
    kept = "".join(c for c in text.lower() if c not in PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def exact(answer: str, truth: str) -> float:
    return float(plain(answer) == plain(truth))


def f1(answer: str, truth: str, no_answer: bool) -> float:
    """2 P R / (P + R) over the words both have, as often as both have them.

    Args: no_answer: version 2.0: if either has no word, it is 1 when both have none; version 1.1 gives 0.
    """
    words, there = plain(answer).split(), plain(truth).split()
    if no_answer and not (words and there):
        return float(words == there)
    both = (Counter(words) & Counter(there)).total()
    return 2 * both / (len(words) + len(there)) if both else 0.0


def scores(answer: str, truths: Sequence[str], no_answer: bool) -> tuple[float, float]:
    """(exact, f1): the best over the true answers, each for itself. With `no_answer`, none means that "" is right."""
    if no_answer:
        truths = [truth for truth in truths if plain(truth)] or [""]
    return max(exact(answer, one) for one in truths), max(f1(answer, one, no_answer) for one in truths)


class SpanScores:
    """Sums over questions; they are what is resampled for the intervals."""

    def __init__(self, no_answer: bool):
        self.no_answer, self.sums = no_answer, Bootstrap(6)      # exact, f1, 1; and the same of questions with an answer

    def add(self, answer: str, truths: Sequence[str]) -> None:
        row = [*scores(answer, truths, self.no_answer), 1.0]
        self.sums.add([*row, *(row if truths else [0.0] * 3)])

    def metrics(self) -> dict[str, float]:
        """exact and f1 with their intervals, between 0 and 1 (SQuAD's tables show percent); with `no_answer` also for each kind of question."""
        found = {"n": float(self.sums.total[2])} | self.sums.metrics({"exact": ratio(0, 2), "f1": ratio(1, 2)})
        if self.no_answer:
            found |= {"unanswerable": float(self.sums.total[2] - self.sums.total[5])} | self.sums.metrics({
                "exact_answerable": ratio(3, 5), "f1_answerable": ratio(4, 5),
                "accuracy_unanswerable": lambda sums: (sums[..., 0] - sums[..., 3]) / (sums[..., 2] - sums[..., 5]).clip(1)})
        return found
