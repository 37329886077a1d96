"""14, other questions: words, spans, pairs."""
from __future__ import annotations

from collections.abc import Callable
from itertools import product
from random import Random
from typing import Any

import torch

from .. import samples
from ..nn.heads import CONTRAST, NEGATIVES
from ..tasks.entities import EntityCounts, spans
from ..tasks.squad import f1
from ..tasks.windows import Window, best_spans
from ..text import read_rows
from .exercise import demand, exercise, gap, in_engine
from .models import moved, padded


@exercise("14", "entities(tags) -> [(type, first word, word after the last one)]")
def entities(answer: Callable) -> str:
    tags, draw = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], Random(0)
    rows = [list(one) for one in product(tags, repeat=3)] + [[draw.choice(tags) for _ in range(9)] for _ in range(100)] + [[]]
    for row in rows:
        found = [tuple(one) for one in answer(row)]
        demand(found == spans(row), f"{row} has {found}, it has {spans(row)}")
    given = [row["tags"] for row in read_rows(samples.path("tagged.conll"))]
    wrong = [["O" if draw.random() < 0.2 else tag for tag in row] for row in given]

    def counted() -> dict[str, float]:
        counts = EntityCounts()
        for truth, said in zip(given, wrong, strict=True):
            counts.add(truth, said)
        return counts.metrics()
    own, strictly = counted(), spans
    with in_engine("tasks.entities:spans", lambda tags, strict=False: strictly(tags, strict) if strict else [tuple(one) for one in answer(tags)]):
        found_there = counted()
    demand(own["entity_f1_lenient"] == found_there["entity_f1_lenient"], "in the engine the F1 of a tagger is another")
    return f"{len(rows)} sentences, and the F1 of a tagger in the engine"


@exercise("14", "best_span(start, end, allowed, longest) -> (first, last) with the largest sum")
def best_span(answer: Callable) -> str:
    for T, longest in ((1, 3), (7, 1), (23, 4), (29, 2), (31, 1), (41, 100)):
        logits, allowed = torch.randn(T, 2), torch.ones(T, dtype=torch.bool)
        allowed[:T // 5] = False
        first, n = T // 5, T - T // 5
        offsets = torch.stack([torch.arange(n), torch.arange(1, n + 1)], 1).numpy()
        window = Window(0, torch.zeros(T).numpy(), torch.zeros(T).numpy(), first, 0, offsets, offsets)
        (_, begin, end), *_ = best_spans(logits, window, "x" * n, 1, longest)[1]
        found = tuple(int(i) for i in answer(logits[:, 0], logits[:, 1], allowed, longest))
        demand(found == (first + begin, first + end - 1), f"{found} of {T} tokens with longest={longest}, it is {(first + begin, first + end - 1)}")
    return "as the engine finds it, six texts"


@exercise("14", "answer_f1(answer, truth) -> SQuAD's F1 of two answers")
def answer_f1(answer: Callable) -> str:
    pairs = [("the cat sat", "The cat."), ("a a dog", "dog"), ("cat cat dog", "cat dog dog"), ("", "cat"), ("An apple-tree!", "appletree"), ("theatre", "the atre"), ("x", "x")]
    for said, truth in pairs:
        found, wanted = float(answer(said, truth)), f1(said, truth, no_answer=False)
        demand(abs(found - wanted) < 1e-9, f"{found:.3f} for {said!r} and {truth!r}, it is {wanted:.3f}")
    return f"{len(pairs)} pairs of answers"


@exercise("14", "pair_loss(a, b, scale) -> the sum of -log softmax_j(scale a_i b_j) at j = i")
def pair_loss(answer: Callable) -> str:
    model: Any = moved("mini-bert", head="embedding")
    model.head.use(NEGATIVES)
    batch: Any = padded(model, (13, 7, 2, 9, 9, 3))
    lowest = model.blocks[0].attn.q_proj.weight
    truth, _ = model.head.loss(model.body(**batch), torch.zeros(3))
    found = answer(*model(**batch).embeddings.chunk(2), CONTRAST)
    worst = gap("the loss of three pairs", found, truth)
    (slope,), (wanted,) = (torch.autograd.grad(loss, lowest) for loss in (found, truth))
    worst = max(worst, gap("the gradient of the lowest query matrix", slope, wanted))
    return f"as the loss of an embedding model, and its gradient, within {worst:.0e}"
