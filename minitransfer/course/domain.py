"""13, another domain."""
from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from .. import samples
from ..objectives import Masked
from ..study import Interval, domain_report
from ..study.domain import COMMON, Text, jensen_shannon, overlap, run_pilot
from ..study.forgetting import Losses, batch_losses, rise
from ..text import PackedBatches, Tokenizer, tokenize_corpus
from ..training.batches import Mixture, Rows, joined
from .exercise import demand, exercise, in_engine
from .models import moved

SIGNS = ["dyspnoea", "oedema", "vertigo", "nausea", "pruritus"]
NOTES = [f"Pt c/o {sign} x {days} days." for sign in SIGNS for days in (2, 3, 5, 7)]


def some_general(n: int = 20) -> list[str]:
    """The first words of sentences."""
    return [" ".join(line.split()[:7]) for line in samples.path("general.txt").read_text(encoding="utf-8").splitlines()[:n]]


def report_with(place: str, instead: Callable) -> None:
    """A report of the notes beside general text, by a moved mini-bert."""
    with in_engine(place, instead):
        domain_report(moved("mini-bert"), Tokenizer.from_pretrained("mini-bert"), NOTES, some_general(), length=16)


@exercise("13", "divergence(p_counts, q_counts) -> the Jensen-Shannon divergence of two texts' tokens, in bits")
def divergence(answer: Callable) -> str:
    for p, q, truth in (([2, 2, 0], [0, 0, 5], 1.0), ([1, 3], [2, 6], 0.0), ([1, 1, 0], [1, 1, 2], 0.31127812445913283), ([1, 0], [1, 1], 0.31127812445913283)):
        found = float(answer(np.array(p), np.array(q)))
        demand(math.isclose(found, truth, abs_tol=1e-9), f"{found:.4f} bits for the counts {p} and {q}, it is {truth:.4f}")
    compared = []

    def both(a: Text, b: Text, own: Callable = jensen_shannon) -> float:
        counts = (np.bincount([i for row in one.ids for i in row], minlength=8192) for one in (a, b))
        found, truth = float(answer(*counts)), own(a, b)
        demand(math.isclose(found, truth, abs_tol=1e-9), f"in the engine, {found:.4f} bits between two texts, it is {truth:.4f}")
        compared.append(found)
        return found
    report_with("study.domain:jensen_shannon", both)
    return f"four by hand, and the {len(compared)} of a report with its intervals"


@exercise("13", "common_words(a, b, k) -> of the k commonest words of each, the share that both have")
def common_words(answer: Callable) -> str:
    for a, b, k, truth in (("x x y z z z", "z y y z", 2, 0.5), ("x x x y", "x y z w", 10_000, 0.5), ("c b a", "a d e", 1, 1.0),
                           ("c b a", "d b e", 2, 0.5), ("a b", "c d", 5, 0.0), ("", "a", 5, 0.0)):
        found = float(answer(a.split(), b.split(), k))
        demand(math.isclose(found, truth, abs_tol=1e-12), f"{found:.3f} for {a!r} and {b!r} with k={k}, it is {truth:.3f}")
    compared = []

    def both(a: Text, b: Text, own: Callable = overlap) -> float:
        found, truth = float(answer(*([word for text in one.words for word in text] for one in (a, b)), COMMON)), own(a, b)
        demand(math.isclose(found, truth, abs_tol=1e-12), f"in the engine, an overlap of {found:.4f} between two texts, it is {truth:.4f}")
        compared.append(found)
        return found
    report_with("study.domain:overlap", both)
    return f"six by hand, and the {len(compared)} of a report with its intervals"


@exercise("13", "loss_rise(before, after) -> how much the mean loss over all targets rose, from (sum, count) of each batch")
def loss_rise(answer: Callable) -> str:
    def both(before: Losses, after: Losses, own: Callable = rise) -> Interval:
        found, truth = float(answer(*([(float(s), int(n)) for s, n in losses] for losses in (before, after)))), own(before, after)
        demand(math.isclose(found, truth.value, abs_tol=1e-9),
               f"{found:+.4f} over {len(before)} batches with {before[:, 1].astype(int).tolist()[:4]} targets, it is {truth.value:+.4f}")
        return truth
    both(np.array([[12.0, 4], [3.0, 1], [0.0, 0]]), np.array([[8.0, 4], [9.0, 1], [0.0, 0]]))
    tok = Tokenizer.from_pretrained("mini-bert")
    with in_engine("study.domain:rise", both):
        found = run_pilot(moved("mini-bert"), tok, Text.of(NOTES[::2], tok), Text.of(some_general(9), tok), Masked(tok), 16, 2, {"batch_size": 5, "lr": 1e-3, "precision": "fp32"})
    return f"as a pilot of two steps: {found.fall.value:+.3f} less on the domain, {found.general_rise.value:+.3f} on general text"


@exercise("13", "old_rows(k, B, share) -> how many rows of batch k are old text")
def old_rows(answer: Callable) -> str:
    for B, share in ((16, "0.5"), (100, "0.29"), (7, "0.3"), (3, "0.1")):
        so_far = 0
        for k in range(12):
            so_far += int(answer(k, B, share))
            truth = math.floor(Fraction(share) * B * (k + 1))
            demand(so_far == truth, f"{so_far} old rows in the first {k + 1} batches of {B} with a share of {share}, it is {truth}")
    tok, model = Tokenizer.from_pretrained("mini-bert"), moved("mini-bert")
    text, old = (Rows(packed, np.arange(packed.n_rows)) for packed in (PackedBatches(tokenize_corpus(tok, many), tok, 13, 3, seed=1) for many in (NOTES, some_general())))
    mixture = Mixture(text, old, 0.3)
    losses = batch_losses(model, mixture, Masked(tok))

    def mixed(self: Mixture, k: int) -> dict[str, Any]:
        B = self.batch_size
        before, after = (sum(int(answer(j, B, "0.3")) for j in range(n)) for n in (k, k + 1))
        return joined(self.text.between(k * B - before, (k + 1) * B - after), self.other.between(before, after))
    with in_engine("training.batches:Mixture.__getitem__", mixed):
        found = batch_losses(model, mixture, Masked(tok))
    demand(np.array_equal(found, losses), f"in the engine the batches have the losses {found[:, 0].tolist()}, they are {losses[:, 0].tolist()}")
    return f"four shares, and the losses of {len(losses)} mixed batches, bit for bit"
