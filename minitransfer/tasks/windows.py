"""A text longer than the model reads is read through windows that overlap; an answer is looked for in all of them and cut from the text itself."""
from __future__ import annotations

import heapq
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..text import Tokenizer, TruncationWarning

NULL = 0            # the position whose scores mean "no answer": the first token, [CLS] in BERT's format
Found = tuple[float, int, int]      # score, first and last character (end exclusive) of an answer in its context


@dataclass(frozen=True)
class Window:
    """A question and a part of its context."""

    row: int                # of the question
    ids: np.ndarray
    type_ids: np.ndarray
    first: int              # position at which the context begins
    begin: int              # number of its first token there, in the whole context
    offsets: np.ndarray     # (n, 2): the characters of its tokens there
    whole: np.ndarray       # (N, 2): of all tokens of the context


@dataclass(frozen=True)
class Frame:
    """The special tokens that a format puts around a pair, and between its texts."""

    parts: list[tuple[list[int], list[int]]]        # ids and type ids before the first text, between, and after the second
    types: tuple[int, int]                          # of the texts themselves

    @classmethod
    def of(cls, tok: Tokenizer) -> Frame:
        (e,) = tok.encodings(["a"], ["a"])
        first, second = (next(i for i, text in enumerate(e.sequence_ids) if text == which) for which in (0, 1))
        texts = [i for i, text in enumerate(e.sequence_ids) if text is not None]
        between = range(max(i for i in texts if i < second) + 1, second)
        places = (range(first), between, range(texts[-1] + 1, len(e)))
        return cls([([e.ids[i] for i in part], [e.type_ids[i] for i in part]) for part in places], (e.type_ids[first], e.type_ids[second]))

    @property
    def extra(self) -> int:
        return sum(len(ids) for ids, _ in self.parts)

    def join(self, question: Sequence[int], context: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        (a, a_types), (b, b_types), (c, c_types) = self.parts
        types = [*a_types, *[self.types[0]] * len(question), *b_types, *[self.types[1]] * len(context), *c_types]
        return np.array([*a, *question, *b, *context, *c], np.int32), np.array(types, np.int8)


def windows(questions: Sequence[str], contexts: Sequence[str], tok: Tokenizer, max_length: int | None, stride: int, max_question: int) -> list[Window]:
    """All windows of all questions, in order. A context that stands beside several questions is tokenised once.

    Args:   max_length: tokens of a window, question and special tokens included; None: a context is one window, however long.
            stride: tokens that two neighbouring windows share, as in `transformers`; fewer where a window holds no more than twice as many.
            max_question: longer questions lose their ends, with a warning.
    Raises: ValueError if a window has no room for a token of the context, or a context has no token.
    """
    frame, known, found, cut = Frame.of(tok), {}, [], 0
    for row, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        asked = tok.encode(question, specials=False)
        cut += len(asked) > max_question
        asked = asked[:max_question]
        if context not in known:
            e = tok.backend.encode(context, add_special_tokens=False)
            known[context] = e.ids, np.array(e.offsets).reshape(-1, 2)
        ids, offsets = known[context]
        if not ids:
            raise ValueError(f"row {row} has a context without a token, {context!r}; an answer is a part of it: drop the row, or give its text")
        room = len(ids) if max_length is None else max_length - frame.extra - len(asked)
        if room < 1:
            raise ValueError(f"max_length={max_length} with a question of {len(asked)} tokens and {frame.extra} special ones leaves no room for the context: "
                             "use a larger max_length, or a smaller max_question")
        for start, end in spread(len(ids), room, stride):
            joined = frame.join(asked, ids[start:end])
            found.append(Window(row, *joined, len(frame.parts[0][0]) + len(asked) + len(frame.parts[1][0]), start, offsets[start:end], offsets))
    if cut:
        warnings.warn(f"{cut} of {len(questions)} questions are longer than {max_question} tokens and lost their ends; use a larger max_question if the model "
                      "has room for it", TruncationWarning, stacklevel=4)
    return found


def spread(n: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """Where windows of at most `room` tokens begin and end in n tokens."""
    step = room - min(stride, room // 2)
    for start in range(0, n, step):
        yield start, min(start + room, n)
        if start + room >= n:
            return


def place(window: Window, start: int, end: int) -> tuple[int, int]:
    """The positions of the first and the last token of context[start:end]; NULL twice if the window does not have the whole of it."""
    tokens = np.flatnonzero((window.whole[:, 1] > start) & (window.whole[:, 0] < end))
    if not len(tokens) or tokens[0] < window.begin or tokens[-1] >= window.begin + len(window.offsets):
        return NULL, NULL
    return window.first + int(tokens[0] - window.begin), window.first + int(tokens[-1] - window.begin)


def best_spans(logits: Float[Tensor, "T 2"], window: Window, context: str, n_best: int, max_answer: int) -> tuple[float, list[Found]]:
    """The score of no answer, and the n best spans of a window: start score + end score, at most `max_answer` tokens, from the context only.

    Every span is looked at, not only those of the best starts and ends.
    """
    n = len(window.offsets)
    part = logits[window.first : window.first + n].double()                        # (n, 2)
    both = part[:, 0, None] + part[None, :, 1]                                      # (n, n): from, to
    both = both.masked_fill(~torch.ones(n, n, dtype=torch.bool).triu().tril(max_answer - 1), float("-inf"))
    values, where = both.flatten().topk(min(n_best, n * n))
    found = []
    for value, index in zip(values.tolist(), where.tolist(), strict=True):
        if value == float("-inf"):
            break
        start, end = int(window.offsets[index // n, 0]), int(window.offsets[index % n, 1])
        text = context[start:end]
        found.append((value, start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())))      # byte-level pieces hold the space before
    return float(logits[NULL].double().sum()), found


def merge(parts: Sequence[tuple[float, list[Found]]], n_best: int) -> tuple[float, list[Found]]:
    """Over the windows of a question: no answer scores as its lowest window does, for an answer may stand in any; a span as its best."""
    best: dict[tuple[int, int], float] = {}
    for _, found in parts:
        for value, start, end in found:
            if end > start:
                best[start, end] = max(value, best.get((start, end), float("-inf")))
    return min(null for null, _ in parts), heapq.nlargest(n_best, [(value, start, end) for (start, end), value in best.items()])
