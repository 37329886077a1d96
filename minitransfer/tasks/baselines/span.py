"""An answer in a context, from the words it shares with the question. Nothing is learned."""
from __future__ import annotations

import heapq
import math
import re
from collections import Counter
from collections.abc import Sequence

from ..span import AnswerPrediction, answers_of
from ..squad import SpanScores
from ..windows import Found
from .base import WORD, Answer, Given, Kind, words

SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'(])")
FEW = 5             # words of an answer at most
COMMON = frozenset("a an the of in on at to for by with and or but is are was were be been it its as that this from did do does had has have which who what".split())
NUMBER, NAME = re.compile(r"\b(when|how many|how much|how long|how old|year|date|percent\w*|century)\b"), re.compile(r"\b(who|whom|whose|where|which)\b")


def sentences_of(context: str) -> list[tuple[int, int]]:
    """Where each sentence begins and ends."""
    starts = [0, *(match.end() for match in SENTENCE.finditer(context))]
    return list(zip(starts, [*starts[1:], len(context)], strict=True))


def fits(question: str, text: str) -> float:
    """1 if the answer looks as the question wants: with a digit for a number or time, with capitals for a name; else 0."""
    if NUMBER.search(question):
        return float(any(c.isdigit() for c in text))
    return float(all(word[0].isupper() for word in WORD.findall(text) if word not in COMMON)) if NAME.search(question) else 0.5


def candidates(question: str, context: str) -> list[Found]:
    """Runs of a few words that the question does not have, scored by the question's words around them.

    score = fits + sum over the question's words in the same sentence of log(1 + 1 / count in the context) / (distance in words)^(1/2)

    Source: Richardson et al. 2013, MCTest (inverse counts, and a distance); as in the baseline of Rajpurkar et al. 2016, SQuAD.
    Deviation: a sentence is the window, and the kind of the question counts.
    """
    asked = words(question) - COMMON
    counts, found = Counter(word.lower() for word in WORD.findall(context)), []
    for begin, end in sentences_of(context):
        there = list(WORD.finditer(context, begin, end))
        names = [one.group().lower() for one in there]
        weights = [(i, math.log1p(1 / counts[name])) for i, name in enumerate(names) if name in asked]
        for i, first in enumerate(there):
            for j in range(i, min(i + FEW, len(there))):
                if names[j] in asked:
                    break
                if names[i] in COMMON or names[j] in COMMON or not weights:
                    continue
                near = sum(weight / math.sqrt(min(abs(k - i), abs(k - j))) for k, weight in weights)
                found.append((near + fits(question.lower(), context[first.start():there[j].end()]), first.start(), there[j].end()))
    return found


def overlap(given: Given, rows: Sequence[dict]) -> tuple[Answer, int]:
    task = given.task

    def answer(asked: Sequence[dict]) -> list[AnswerPrediction]:
        best = (heapq.nlargest(task.n_best, candidates(row[task.question], row[task.context])) for row in asked)
        return [task.read(0.0, found, row[task.context]) for row, found in zip(asked, best, strict=True)]
    return answer, 0


def measure(given: Given, rows: Sequence[dict], answers: list[AnswerPrediction]) -> dict[str, float]:
    sums = SpanScores(given.task.no_answer)
    for row, answer in zip(rows, answers, strict=True):
        sums.add(answer.text, [text for text, _ in answers_of(row, given.task.answers, "a row")])
    return sums.metrics()


KIND = Kind({"overlap": overlap}, measure)
