"""Questions whose answer is a part of a text: where it starts and where it ends."""
from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..config import choose
from ..nn.evaluating import evaluating
from ..nn.heads import IGNORE
from ..nn.model import Model
from ..text import EncodedBatches, Tokenizer
from ..text.readers import column
from ..text.tokenizer import check_texts
from ..training.evaluate import Evaluation
from ..training.ranks import each
from .base import logits_of
from .squad import SpanScores
from .windows import NULL, Found, Window, best_spans, merge, place, windows


@dataclass(frozen=True)
class AnswerPrediction:
    """context[start:end], or "" (start = end = 0) for no answer. The probability is among the best ones; they are in `others`, best first."""

    text: str
    start: int
    end: int
    probability: float
    others: list[AnswerPrediction] = field(default_factory=list, repr=False)


def answers_of(row: dict, name: str, where: str) -> list[tuple[str, Any]]:
    """(text, first character) of each answer, from {"text": [...], "answer_start": [...]} or a list of {"text", "answer_start"}.

    Raises: ValueError for another shape.
    """
    told = row[name]
    try:
        found = list(zip(told["text"], told["answer_start"], strict=True)) if isinstance(told, dict) else [(one["text"], one["answer_start"]) for one in told]
        return [(text, int(float(start)) if isinstance(start, Real) and float(start).is_integer() else start) for text, start in found]     # tables make whole numbers floats
    except (KeyError, TypeError, ValueError) as why:
        raise ValueError(f'{where}: {name!r} is {told!r}; needed is {{"text": ["..."], "answer_start": [0]}}, with empty lists for no answer: mend the row') from why


class SpanBatches:
    """Batches of windows. labels (B, 2): the positions of the first and last token of the answer, 0 and 0 where the window does not have it."""

    def __init__(self, task: SpanTask, rows: Sequence[dict], tok: Tokenizer, batch_size: int | None, max_tokens: int | None, max_length: int | None, seed: int):
        self.rows, self.task = rows, task
        self.contexts = column(rows, task.context)
        self.windows = windows(column(rows, task.question), self.contexts, tok, max_length, task.stride, task.max_question)
        targets = torch.tensor([task.target(rows[one.row], one) for one in self.windows])
        self.plain = EncodedBatches([one.ids for one in self.windows], [one.type_ids for one in self.windows], targets, tok, batch_size, max_tokens, seed, task.context)

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, k: int) -> dict[str, Tensor]:
        return self.plain[k]


def found_by(logits: Iterable[Tensor], asked: Sequence[Window], contexts: Sequence[str], n_best: int, max_answer: int) -> Iterator[tuple[int, float, list[Found]]]:
    """For each question in order: its number, the score of no answer, the best spans. Only one question's windows are held.

    Args: logits: (B, T, 2), batch after batch of the windows that were asked.
    """
    row = 0
    parts: list[tuple[float, list[Found]]] = []
    for window, one in zip(asked, chain.from_iterable(logits), strict=True):
        if window.row != row:
            yield row, *merge(parts, n_best)
            row, parts = window.row, []
        parts.append(best_spans(one, window, contexts[window.row], n_best, max_answer))
    if parts:
        yield row, *merge(parts, n_best)


@dataclass(frozen=True)
class SpanTask:
    """Rows with a question, a context, and the answers that stand in it, as `read_rows` gives them from SQuAD's files.

    Args: no_answer: some questions have none (SQuAD 2.0); it is given where its score is above the best span's by more than `threshold`.
          stride: tokens that two windows of a long context share; max_question, max_answer: tokens at most; n_best: answers a prediction lists.
          missing: training answers that do not stand where they say: "refuse" them, or "skip" the rows, with one warning that counts them.
    """

    name: ClassVar[str] = "span"
    head: ClassVar[str] = "span"
    problem: ClassVar[str | None] = None
    best: ClassVar[str] = "f1 higher"
    question: str = "question"
    context: str = "context"
    answers: str = "answers"
    no_answer: bool = False
    threshold: float = 0.0
    stride: int = 128
    max_question: int = 64
    max_answer: int = 30
    n_best: int = 20
    missing: str = "refuse"

    def __post_init__(self) -> None:
        choose("missing", self.missing, ("refuse", "skip"))
        for name in ("max_question", "max_answer", "n_best"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; one is the least that can be found: use 1 or more")
        if self.stride < 0 or not math.isfinite(self.threshold):
            raise ValueError(f"stride={self.stride}, threshold={self.threshold}; windows share 0 tokens or more, and scores are compared with a finite number: correct it")

    @property
    def columns(self) -> dict[str, Any]:
        return {"question": self.question, "context": self.context, "answers": self.answers}

    @property
    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("no_answer", "threshold", "stride", "max_question", "max_answer", "n_best", "missing")}

    @property
    def asks(self) -> list[str]:
        return [self.question, self.context]

    def stands(self, row: dict) -> bool:
        """Whether the first answer is in the context where it says (or there is none)."""
        return all(isinstance(start, int) and text and row[self.context][start : start + len(text)] == text for text, start in answers_of(row, self.answers, "a row")[:1])

    def target(self, row: dict, window: Window) -> tuple[int, int]:
        """The positions to learn: of the first answer. One that is not where it says is no target."""
        told = answers_of(row, self.answers, "a row")
        if not self.stands(row):
            return IGNORE, IGNORE
        return place(window, told[0][1], told[0][1] + len(told[0][0])) if told else (NULL, NULL)

    def labels(self, train: Sequence[dict], validation: Sequence[dict]) -> list[str]:
        """A span has no classes.

        Raises: KeyError for a missing column; ValueError for answers of another shape, none at all, none where `no_answer` is off, or that are not in
                the context if this is refused.
        """
        for split, rows in (("training", train), ("validation", validation)):
            for name in (self.question, self.context, self.answers):
                values = column(rows, name, split)
                if name != self.answers:
                    check_texts(values, f"{split} {name!r}")
            empty = [i for i, row in enumerate(rows) if not answers_of(row, self.answers, f"{split} row {i}")]
            if empty and not self.no_answer:
                raise ValueError(f"{len(empty)} of {len(rows)} {split} rows have no answer, first row {empty[0]}; by default every question has one: drop these rows, "
                                 "or use task=SpanTask(no_answer=True)")
            if rows and len(empty) == len(rows):
                raise ValueError(f"none of the {len(rows)} {split} rows has an answer; there is nothing to tell apart: check the column {self.answers!r}")
        wrong = [i for i, row in enumerate(train) if not self.stands(row)]
        if not wrong:
            return []
        (text, start), *_ = answers_of(train[wrong[0]], self.answers, "a row")
        there = train[wrong[0]][self.context][start : start + len(text)] if isinstance(start, int) else None
        what = (f"{len(wrong)} of {len(train)} training rows have an answer that is not in the context where it says, first row {wrong[0]}: {text!r} at {start}, "
                f"where the context has {there!r}")
        if self.missing == "refuse" or len(wrong) == len(train):
            raise ValueError(f'{what}; an answer is cut from the context: mend answer_start (in characters, from 0), or use task=SpanTask(missing="skip")')
        warnings.warn(f"{what}; these rows were skipped", UserWarning, stacklevel=4)
        return []

    def batches(self, rows: Sequence[dict], tok: Tokenizer, labels: Sequence[str], batch_size: int | None, max_tokens: int | None,
                max_length: int | None, seed: int) -> SpanBatches:
        return SpanBatches(self, rows, tok, batch_size, max_tokens, max_length, seed)

    def evaluation(self, batches: Any) -> Evaluation:
        """Exact match and F1 over all true answers of each question."""
        def evaluate(model: Model) -> dict[str, float]:
            sums = SpanScores(self.no_answer)
            logits = each(batches.plain.in_order(), lambda batch: logits_of(model, batch).cpu())
            for row, null, found in found_by(logits, batches.windows, batches.contexts, 1, self.max_answer):
                sums.add(self.choice(null, found, batches.contexts[row]), [text for text, _ in answers_of(batches.rows[row], self.answers, "a row")])
            return sums.metrics()
        return evaluate

    def choice(self, null: float, found: Sequence[Found], context: str) -> str:
        if not found or (self.no_answer and null - found[0][0] > self.threshold):
            return ""
        _, start, end = found[0]
        return context[start:end]

    def predict(self, model: Model, tok: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, batch_size: int,
                max_length: int | None) -> list[AnswerPrediction]:
        """texts: the questions; pairs: their contexts."""
        if pairs is None or len(pairs) != len(texts):
            raise ValueError(f"{len(texts)} questions and {'no' if pairs is None else len(pairs)} contexts; an answer is cut from a context: pass one for each question "
                             "as pairs=[...]")
        for name, some in (("questions", texts), ("contexts", pairs)):
            check_texts(some, name)
        asked = windows(texts, pairs, tok, max_length, self.stride, self.max_question)
        stream = EncodedBatches([one.ids for one in asked], [one.type_ids for one in asked], torch.zeros(len(asked)), tok, batch_size)
        with evaluating(model), torch.no_grad():
            logits = (logits_of(model, batch).cpu() for batch in stream.in_order())
            found = found_by(logits, asked, pairs, self.n_best, self.max_answer)
            return [self.read(null, spans, pairs[row]) for row, null, spans in found]

    def read(self, null: float, found: Sequence[Found], context: str) -> AnswerPrediction:
        """The n best answers with probabilities among themselves: a softmax of their scores."""
        spans = [(value, start, end) for value, start, end in found]
        if self.no_answer or not spans:
            spans.append((null - (self.threshold if spans else 0.0), 0, 0))
        values = np.array([value for value, _, _ in spans])
        p = np.exp(values - values.max())
        listed = [AnswerPrediction(context[start:end], start, end, float(one)) for one, (_, start, end) in zip(p / p.sum(), spans, strict=True)]
        listed.sort(key=lambda one: -one.probability)
        first = listed[0]
        return AnswerPrediction(first.text, first.start, first.end, first.probability, listed)
