"""What a frozen model's layers say of words: a linear classifier on each of them, and beside it everything that keeps its score honest.

    score          accuracy over folds of sentences, or bits a word of an online code (MDL)
    control        the same classifier on labels drawn at random for each kind of word; selectivity = how much better the task does
    twin           the same on the states of a body with random weights
    embeddings     layer 0: how much better the layer is than knowing the word
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from ..config import choose
from ..nn.model import Model
from ..tasks.intervals import Bootstrap, ratio
from ..text import Tokenizer
from ..transfer.groups import Table
from .examples import Examples, examples, random_twin
from .tables import Interval, draw_line, interval, new_axes
from .treebank import Labels, Treebank, control_labels, read_treebank

PORTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)       # of the words, after which an online code learns anew
STRENGTH = 0.1      # C of the logistic regression: the penalty is |W|^2 / (2 C N) beside the mean cross entropy of N words
Score = Callable[[Float[np.ndarray, "N D"], Int[np.ndarray, "N"]], Float[np.ndarray, "N"]]


def default_classifier() -> Any:
    """Raises: ImportError without scikit-learn."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as e:
        raise ImportError('a probe is a classifier of scikit-learn, which is not installed: pip install "minitransfer[study]"') from e
    return make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=2000))


def folds_of(found: Examples, folds: int, by: str, seed: int) -> Int[np.ndarray, "N"]:
    """The fold in which each word is tested: whole sentences, drawn; or single words, as many of each label in each fold and in their order.

    Raises: ValueError for fewer of them than folds.
    """
    choose("by", by, ("sentence", "word"))
    sentences = np.unique(found.sentence)
    n = len(sentences) if by == "sentence" else int(np.bincount(found.y).max())
    if not 2 <= folds <= n:
        raise ValueError(f"folds={folds} of {n} {'sentences' if by == 'sentence' else 'words with one label'}; each fold is tested once and needs one: "
                         f"give between 2 and {n} folds, or more sentences")
    if by == "sentence":
        of_sentence = dict(zip(np.random.default_rng(seed).permutation(sentences).tolist(), np.arange(len(sentences)) % folds, strict=True))
        return np.array([of_sentence[one] for one in found.sentence.tolist()])
    from sklearn.model_selection import StratifiedKFold
    fold = np.empty(len(found.y), int)
    for i, (_, tested) in enumerate(StratifiedKFold(folds).split(found.y, found.y)):
        fold[tested] = i
    return fold


def fitted(classifier: Any, x: np.ndarray, y: np.ndarray) -> Any:
    from sklearn.base import clone
    return clone(classifier).fit(x, y)


def accuracy(classifier: Any, fold: Int[np.ndarray, "N"]) -> Score:
    """1 for each word that is labelled rightly by a classifier that has learned from the other folds, else 0."""
    def score(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        right = np.zeros(len(y))
        for i in np.unique(fold):
            right[fold == i] = fitted(classifier, x[fold != i], y[fold != i]).predict(x[fold == i]) == y[fold == i]
        return right
    return score


def code_length(classifier: Any, order: Int[np.ndarray, "N"], K: int) -> Score:
    """The bits that each label takes in an online code: the first words cost log2 K each; every portion is coded by a classifier that has learned from all before it.

        bits(y | x) = -log2 (t p(y | x) + 1) / (t + K)          p: of a classifier that has learned from t words

    The 1 and the K (Laplace's rule) make a label that was not there among the t words cost finitely many bits.

    Source: Voita & Titov 2020, section 2.2.2; deviation: a logistic regression, with Laplace's rule, where the paper trains an MLP by early stopping.
    """
    def score(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y, bits = x[order], y[order], np.full(len(y), np.log2(K))
        edges = sorted({round(len(y) * part) for part in PORTIONS} - {0})
        for t, end in pairwise(edges):
            p, there = np.zeros((end - t, K)), np.unique(y[:t])
            p[:, there] = 1.0 if len(there) == 1 else fitted(classifier, x[:t], y[:t]).predict_proba(x[t:end])
            bits[t:end] = -np.log2((t * p[np.arange(end - t), y[t:end]] + 1) / (t + K))
        back = np.empty(len(y))
        back[order] = bits
        return back
    return score


@dataclass(frozen=True)
class ProbeRow:
    """One layer; every value with its 95 % interval."""

    layer: int
    score: Interval
    control: Interval
    selectivity: Interval           # how much better than the control task
    twin: Interval                  # of random weights
    over_embeddings: Interval       # how much better than layer 0


@dataclass(frozen=True, repr=False)
class Probe(Table):
    """What each layer says of a task. Prints as a table; `draw` gives the curve.

    `scores` are those of single words, in the order of `words`: task, control and twin, (L + 1, N) each. `fold`: in which each was tested (linear), or the order in
    which they are coded (mdl).
    """

    note = ("Control task: a label drawn for each kind of word; selectivity: how much better the task is done. Random twin: the same body, never trained. "
            "Over embeddings: how much better than layer 0.")
    task: str
    kind: str
    rows: tuple[ProbeRow, ...]
    baseline: float                 # without any vector: the share of the commonest label, or the bits of knowing how common each is
    names: tuple[str, ...]
    words: tuple[str, ...]
    y: np.ndarray
    control_y: np.ndarray
    sentence: np.ndarray
    fold: np.ndarray
    scores: dict[str, np.ndarray]

    @property
    def title(self) -> str:
        return "accuracy" if self.kind == "linear" else "bits a word"

    @property
    def by_fold(self) -> Float[np.ndarray, "L F"]:
        """The accuracy of each layer in each fold."""
        return np.stack([self.scores["task"][:, self.fold == i].mean(1) for i in np.unique(self.fold)], 1)

    def cells(self) -> list[tuple[str, ...]]:
        head = ("layer", self.title, "control task", "selectivity", "random twin", "over embeddings")
        body = [(str(r.layer) if r.layer else "embed", *map(str, (r.score, r.control, r.selectivity, r.twin, r.over_embeddings))) for r in self.rows]
        return [head, *body, ("none", f"{self.baseline:.3f}", *[""] * 4)]

    def by_label(self) -> list[tuple[str, ...]]:
        """Cells: the score of each layer on the words of each label, the commonest first."""
        n = np.bincount(self.y, minlength=len(self.names))
        body = [(self.names[k], f"{n[k]:,}", *(f"{score:.3f}" for score in self.scores["task"][:, self.y == k].mean(1))) for k in (-n).argsort(kind="stable")]
        return [("label", "words", *(f"layer {row.layer}" if row.layer else "embed" for row in self.rows)), *body]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: without the scores of single words."""
        return {"task": self.task, "kind": self.kind, "measure": self.title, "words": len(self.words), "sentences": len(np.unique(self.sentence)),
                "labels": list(self.names), "baseline": round(self.baseline, 6),
                "layers": [{name: value.rounded() if isinstance(value, Interval) else value for name, value in vars(row).items()} for row in self.rows]}

    def draw(self, axes: Any = None) -> Any:
        """Task, control task and twin by layer, with their intervals. Returns: matplotlib's axes."""
        axes = new_axes(7, 4)[0, 0] if axes is None else axes
        layers = np.arange(len(self.rows))
        for name, label in (("score", self.task), ("twin", "random weights"), ("control", "control task")):
            draw_line(axes, layers, [getattr(row, name) for row in self.rows], label)
        axes.axhline(self.baseline, linestyle="--", color="grey", linewidth=1, label="no vector")
        axes.set(xlabel="layer (0: embeddings)", ylabel=self.title, xticks=layers, title=f"{self.task}: {len(self.words):,} words")
        axes.legend(fontsize="small")
        return axes


def probe(model: Model, tok: Tokenizer, treebank: Treebank, task: str | Labels = "pos", kind: str = "linear", sentences: int | None = 500, folds: int = 3,
          by: str = "sentence", classifier: Any = None, seed: int = 0, cache: str | Path | None = None) -> Probe:
    """What each layer of a frozen model says of a task, with a control task, a twin of random weights, and intervals.

        probe(model, tok, "en_ewt-ud-dev.conllu", "pos").draw()

    A word's vector is the mean over its pieces. With kind="linear" the score is the accuracy over `folds`; with "mdl" bits a word, of which fewer are better.

    Args:   treebank: a .conllu or .conll file, or sentences; task: "pos", "relation" (dependency label), "distance" and "depth" (of the head, in the tree), "ner" (of a
            .conll file), a feature such as "Number" or "Tense", or a function from a sentence to a label for each word (None: not asked for).
            sentences: so many are drawn from the treebank; None: all. by: folds of whole "sentence"s, or of a "word" each, stratified, for a handful of words.
            classifier: any of scikit-learn; default: a logistic regression on standardised states. cache: see `extract_features`.
    Source: Hewitt & Liang 2019 (control tasks); Zhang & Bowman 2018 (random weights); Voita & Titov 2020 (MDL). Intervals: bootstrap over sentences.
    Raises: ValueError for a task without labels, or fewer examples than folds; ImportError without scikit-learn; OSError for a cache that cannot be written.
    """
    choose("kind", kind, ("linear", "mdl"))
    classifier = default_classifier() if classifier is None else classifier
    chosen = read_treebank(treebank, sentences, seed)
    found = examples(model, tok, chosen, task, cache)
    fold = folds_of(found, folds, by, seed)
    if kind == "mdl":
        fold = np.argsort(np.random.default_rng(seed).permutation(len(chosen))[found.sentence], kind="stable")
    score = accuracy(classifier, fold) if kind == "linear" else code_length(classifier, fold, len(found.names))
    twin = examples(random_twin(model, seed), tok, chosen, task, cache)
    control = control_labels(found.words, found.y, seed)
    asked = {"task": (found, found.y), "control": (found, control), "twin": (twin, found.y)}
    scores: dict[str, list[np.ndarray]] = {name: [] for name in asked}
    for layer in tqdm(range(found.states.shape[1]), desc="layers", disable=None, leave=False):
        for name, (source, y) in asked.items():
            scores[name].append(score(source.states[:, layer].astype(float), y))
    arrays = {name: np.stack(each) for name, each in scores.items()}
    return Probe(task if isinstance(task, str) else getattr(task, "__name__", "labels"), kind, rows_from(arrays, found.sentence, kind), baseline(found.y, kind), found.names,
                 found.words, found.y, control, found.sentence, fold, arrays)


def baseline(y: np.ndarray, kind: str) -> float:
    share = np.bincount(y) / len(y)
    return float(share.max() if kind == "linear" else -(share * np.log2(share.clip(1e-300))).sum())


def rows_from(scores: dict[str, np.ndarray], sentence: np.ndarray, kind: str) -> tuple[ProbeRow, ...]:
    """Means over words and their differences, resampled by sentences; a difference is above zero where the first is better."""
    layers, better = len(scores["task"]), 1 if kind == "linear" else -1
    _, number = np.unique(sentence, return_inverse=True)
    sums = Bootstrap(1 + 3 * layers)
    sums.add(np.stack([np.bincount(number), *(np.bincount(number, one) for name in ("task", "control", "twin") for one in scores[name])], 1))

    def less(a: int, b: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda s: better * (ratio(a, 0)(s) - ratio(b, 0)(s)) + 0.0                # no -0
    columns = ((1 + i, 1 + layers + i, 1 + 2 * layers + i) for i in range(layers))
    return tuple(ProbeRow(i, interval(sums, ratio(task, 0)), interval(sums, ratio(control, 0)), interval(sums, less(task, control)), interval(sums, ratio(twin, 0)),
                          interval(sums, less(task, 1))) for i, (task, control, twin) in enumerate(columns))
