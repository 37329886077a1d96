"""How far is a domain from general text, for this tokenizer and this model, and would more pretraining on it pay?

    fertility       tokens a word
    overlap         the share of each text's commonest words (at most 10,000) that are among the other's
    JSD             H((p + q) / 2) - (H(p) + H(q)) / 2, in bits, of the frequencies p and q of tokens: 0 the same, 1 nothing in common
    proxy-A         2 (1 - 2 e)     e: the error of a linear classifier that tells the texts apart by the model's states: 0 alike, 2 told apart always
    loss            of the model's own objective, in nats a token

Small texts differ by chance. Beside each distance stands the same one between two halves of the general text, measured on as many tokens.
Source: Gururangan et al. 2020, section 3.1 (overlap); Lin 1991 (JSD); Ben-David et al. 2007, section 4 (proxy-A), whose classifier reads words; here it reads the states.
"""
from __future__ import annotations

import copy
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ..nn.given import need_vocabulary
from ..nn.model import Model
from ..objectives import Objective
from ..tasks.intervals import Bootstrap, ratio
from ..tasks.metrics import wilson
from ..text import Tokenizer, TruncationWarning, read_texts
from ..text.vectors import WORD
from ..training import adapt
from ..training.pretrain import make_objective, own_objective
from ..transfer import extract_features
from ..transfer.groups import Table
from .forgetting import Losses, batch_losses, mean_loss, packed, rise
from .tables import Interval, interval, jackknife, new_axes, signed

COMMON = 10_000         # words whose overlap is counted
PARTS = 10              # of the texts, each left out once
LEAST_TEXTS = 2 * PARTS


@dataclass(frozen=True)
class Text:
    """Some texts, as words and as tokens."""

    texts: tuple[str, ...]
    words: tuple[list[str], ...]
    ids: tuple[list[int], ...]

    @classmethod
    def of(cls, texts: Sequence[str], tok: Tokenizer) -> Text:
        return cls(tuple(texts), tuple(WORD.findall(text.lower()) for text in texts), tuple(tok.encode_batch(texts)))

    @property
    def n_tokens(self) -> int:
        return sum(map(len, self.ids))

    def take(self, which: Sequence[int] | Int[np.ndarray, "N"]) -> Text:
        return Text(tuple(self.texts[i] for i in which), tuple(self.words[i] for i in which), tuple(self.ids[i] for i in which))

    def up_to(self, tokens: int) -> Text:
        """The first texts with about so many tokens, at least the parts of a jackknife."""
        ends = np.cumsum([len(one) for one in self.ids])
        return self.take(range(min(len(self.ids), max(PARTS, int(np.searchsorted(ends, tokens)) + 1))))

    def without(self, part: int) -> Text:
        return self.take([i for i in range(len(self.texts)) if i % PARTS != part])


def fertility(one: Text) -> float:
    return one.n_tokens / max(1, sum(map(len, one.words)))


def overlap(a: Text, b: Text) -> float:
    counts = [Counter(word for text in one.words for word in text) for one in (a, b)]
    k = min(COMMON, *map(len, counts))
    common = [{word for word, _ in sorted(count.items(), key=lambda item: (-item[1], item[0]))[:k]} for count in counts]
    return len(common[0] & common[1]) / max(1, k)


def jensen_shannon(a: Text, b: Text) -> float:
    size = 1 + max(max(map(max, filter(None, one.ids)), default=0) for one in (a, b))
    p, q = (np.bincount(np.concatenate([np.array(row, int) for row in one.ids]), minlength=size) / max(1, one.n_tokens) for one in (a, b))

    def entropy(p: Float[np.ndarray, "V"]) -> float:
        return float(-(p[p > 0] * np.log2(p[p > 0])).sum())
    return max(0.0, entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2)


def between(measure: Callable[[Text, Text], float], a: Text, b: Text, least: float = 0.0, most: float = 1.0) -> Interval:
    """A measure of two texts with its interval: parts of both are left out."""
    return jackknife(measure(a, b), [measure(a.without(i), b.without(i)) for i in range(PARTS)], least, most)


def of_one(measure: Callable[[Text], float], a: Text) -> Interval:
    return jackknife(measure(a), [measure(a.without(i)) for i in range(PARTS)], 0.0)


def proxy_a(model: Model, tok: Tokenizer, a: Text, b: Text, length: int, seed: int) -> Interval:
    """Half of the texts teach a logistic regression on the mean states of their first tokens, the others, as many of either kind, judge it. Interval: Wilson's, of the error."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    n = min(len(a.texts), len(b.texts)) // 2 * 2
    rows = [{"text": text} for one in (a, b) for text in one.texts[:n]]
    with tempfile.TemporaryDirectory() as cache, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        x, _ = extract_features(model, tok, rows, label=None, pooling="mean", max_length=length, cache=cache)
    y, learns = np.repeat([0, 1], n), np.tile(np.random.default_rng(seed).permutation(n) % 2 == 0, 2)
    wrong = int((make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(x[learns], y[learns]).predict(x[~learns]) != y[~learns]).sum())
    distance = [max(0.0, 2 * (1 - 2 * e)) for e in (wrong / n, *wilson(wrong, n))]
    return Interval(distance[0], distance[2], distance[1])


@dataclass(frozen=True)
class Contrast:
    """One measure: of the domain, of the general text, between the two, and between two halves of the general text."""

    name: str
    domain: Interval | None
    general: Interval | None
    between: Interval
    floor: Interval | None

    @property
    def verdict(self) -> str:
        """Whether the two texts differ more than two halves of one do."""
        if self.floor is None:
            return "" if self.between.low <= 0 <= self.between.high else "differ"
        return "differ" if self.between.low > self.floor.high or self.between.high < self.floor.low else ""


@dataclass(frozen=True)
class Pilot:
    """A short run of adaptive pretraining: how far the loss on held-out text of the domain fell in all and in the second half of the steps, and what general text paid."""

    steps: int
    loss: float
    fall: Interval
    last_doubling: Interval
    general_rise: Interval

    def estimate(self, times: int | float) -> Interval:
        """The loss, at least 0, after so many times the steps, if every doubling goes on giving as much as the last one: rather too good, since falls get smaller."""
        value, low, high = (max(0.0, self.loss - math.log2(times) * fall) for fall in self.last_doubling)
        return Interval(value, high, low)

    def __str__(self) -> str:
        goes_on = "it was still falling" if self.last_doubling.low > 0 else "it is not shown that it was still falling"
        return (f"a pilot of {self.steps} steps: the loss on the domain falls by {self.fall} to {self.loss:.3f} nats a token, {self.last_doubling} of it in the last doubling "
                f"of the steps: {goes_on}; if every doubling gave as much, 16 times the steps would end at "
                f"{self.estimate(16)}. The loss on general text: {signed(self.general_rise)}")


@dataclass(frozen=True, repr=False)
class DomainReport(Table):
    """A domain beside general text. Prints as a table, with a sentence about the pilot; `draw` shows the distances beside what chance gives."""

    rows: tuple[Contrast, ...]
    tokens: int                             # of each of the texts between which distances were measured
    pilot: Pilot | None

    def cells(self) -> list[tuple[str, ...]]:
        head = ("", "domain", "general", "between them", "between halves of the general text", "")
        return [head, *((row.name, *("" if one is None else str(one) for one in (row.domain, row.general, row.between, row.floor)), row.verdict) for row in self.rows)]

    def __str__(self) -> str:
        return super().__str__() + (f"\n{self.pilot}" if self.pilot else "")

    __repr__ = __str__

    def draw(self, axes: Any = None) -> Any:
        """Overlap, JSD and proxy-A (halved), each from 0 to 1. Returns: matplotlib's axes."""
        axes = new_axes(7, 3)[0, 0] if axes is None else axes
        shown = [row for row in self.rows if row.name in DISTANCES]
        for i, (which, label) in enumerate((("between", "domain and general text"), ("floor", "halves of the general text"))):
            value, low, high = np.array([[x / DISTANCES[row.name] for x in getattr(row, which)] for row in shown]).T
            axes.errorbar(value, np.arange(len(shown)) + 0.2 * i, xerr=[value - low, high - value], fmt="o", capsize=3, label=label)
        axes.set(yticks=range(len(shown)), yticklabels=[row.name + (" / 2" if DISTANCES[row.name] == 2 else "") for row in shown], xlim=(-0.05, 1.05),
                 title=f"{self.tokens:,} tokens of each text")
        axes.legend(fontsize="small")
        return axes


DISTANCES = {"overlap of common words": 1.0, "JSD of tokens, bits": 1.0, "proxy-A distance": 2.0}      # and the largest each can be


def read(source: Any, most: int, tok: Tokenizer, name: str, seed: int) -> Text:
    """Raises: ValueError for too few texts."""
    texts = [text for text, _ in zip(read_texts(source), range(most), strict=False)]
    if len(texts) < LEAST_TEXTS:
        raise ValueError(f"{len(texts)} texts of the {name} text; intervals come from leaving parts of them out, and take {LEAST_TEXTS} or more: give more, or shorter texts")
    return Text.of([texts[i] for i in np.random.default_rng(seed).permutation(len(texts))], tok)


def run_pilot(model: Model, tok: Tokenizer, domain: Text, general: Text, objective: Objective, length: int, steps: int, settings: dict[str, Any]) -> Pilot:
    """Half of the domain's texts teach, the others judge; two legs of half the steps at a constant rate, so that the last one is the last doubling."""
    twin, n = copy.deepcopy(model), len(domain.texts) // 2
    held = {name: packed(tok, list(one.texts), length, 8, objective) for name, one in (("domain", domain.take(range(n, 2 * n))), ("general", general))}

    def ask() -> dict[str, Losses]:
        return {name: batch_losses(twin, batches, objective) for name, batches in held.items()}
    at = [ask()]
    for leg in range(2):
        adapt(twin, tok, list(domain.texts[:n]), length=length, steps=steps // 2, validation=list(domain.texts[n:]), eval_every=10**9, best=None, progress=False,
              **{"schedule": "constant", "seed": leg, **settings})
        at.append(ask())
    fall, last = rise(at[2]["domain"], at[0]["domain"]), rise(at[2]["domain"], at[1]["domain"])
    return Pilot(steps, mean_loss(at[2]["domain"]), fall, last, rise(at[0]["general"], at[2]["general"]))


def loss_of(losses: Losses) -> Interval:
    sums = Bootstrap(2)
    sums.add(losses)
    return interval(sums, ratio(0, 1))


def domain_report(model: Model, tok: Tokenizer, domain: Any, general: Any, *, pilot: int = 0, texts: int = 1000, length: int = 64, seed: int = 0, **settings: Any) -> DomainReport:
    """How a domain differs from general text, and what a short run of adaptive pretraining gives.

        print(domain_report(model, tok, "clinical.txt", "wikipedia.txt", pilot=50))

    Args:   model: with its vocabulary head. domain, general: anything `read_texts` reads; the first `texts` of each are used. length: tokens of a text that the model reads.
            pilot: steps of `adapt` on half of the domain's texts, on a copy; 0: none. settings: of `adapt`, for the pilot.
    Raises: ValueError for a model without a vocabulary head, or fewer than 20 texts; ImportError without scikit-learn.
    """
    need_vocabulary(model, "a domain report")
    if pilot < 0 or pilot % 2:
        raise ValueError(f"pilot={pilot}; its two halves are compared: give an even number of steps, or 0 for none")
    d, g = (read(source, texts, tok, name, seed) for source, name in ((domain, "domain's"), (general, "general")))
    halves = g.take(range(0, len(g.texts), 2)), g.take(range(1, len(g.texts), 2))
    tokens = min(d.n_tokens, *(one.n_tokens for one in halves))
    a, b, c = (one.up_to(tokens) for one in (d, *halves))
    objective = make_objective(own_objective(model, tok), tok, model, 0)
    losses = {name: loss_of(batch_losses(model, packed(tok, list(one.texts), length, 8, objective), objective)) for name, one in (("d", a), ("g", b))}
    gap = losses["d"].value - losses["g"].value
    half = math.hypot(*(one.high - one.low for one in losses.values())) / 2
    rows = (Contrast("fertility, tokens a word", of_one(fertility, a), of_one(fertility, b), between(lambda x, y: fertility(x) - fertility(y), a, b, -math.inf, math.inf),
                     between(lambda x, y: fertility(x) - fertility(y), b, c, -math.inf, math.inf)),
            Contrast("overlap of common words", None, None, between(overlap, a, b), between(overlap, b, c)),
            Contrast("JSD of tokens, bits", None, None, between(jensen_shannon, a, b), between(jensen_shannon, b, c)),
            Contrast("proxy-A distance", None, None, proxy_a(model, tok, a, b, length, seed), proxy_a(model, tok, b, c, length, seed)),
            Contrast("loss, nats a token", losses["d"], losses["g"], Interval(gap, gap - half, gap + half), None))
    return DomainReport(rows, tokens, run_pilot(model, tok, d, g, objective, length, pilot, settings) if pilot else None)
