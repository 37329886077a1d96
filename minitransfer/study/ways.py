"""Ways to learn a labelling from the same rows, from counting words to tuning everything: who answered which held-out row rightly, and what it cost."""
from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float

from ..nn.model import Model
from ..tasks import SequenceTask, baseline, finetune
from ..tasks.base import longest
from ..tasks.baselines import KINDS, spoken
from ..tasks.finetune import hash_rows
from ..tasks.intervals import ends, resampled
from ..tasks.named import check_columns, task_of
from ..tasks.sequence import label_names
from ..tasks.split import check_held_out
from ..text import Tokenizer, read_rows, sample_rows
from ..transfer import extract_features
from .examples import random_twin
from .tables import Interval

BASELINES = tuple(KINDS["sequence"].learn)
LEAST_STEPS = 150       # of a tuning run: three epochs of 16 rows are three steps, which teach nothing; the strategies' rates were chosen on runs of so many
SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 16, "progress": False, "best": None}


@dataclass(frozen=True)
class Learned:
    """What one run gave: the label of each held-out row, the seconds of learning and of answering, and how many numbers were learned."""

    answers: list[str]
    seconds: float
    answering: float
    trained: int


@dataclass(frozen=True)
class Ground:
    """What all ways have in common: the model they may start from, the rows, and who judges."""

    model: Model
    tok: Tokenizer
    task: SequenceTask
    train: list[dict]
    held_out: list[dict]
    vectors: Any = None

    @classmethod
    def of(cls, model: Model, tok: Tokenizer, task: Any, train: Any, validation: Any, text: str | None = None, pair: str | None = None, label: str | None = None,
           vectors: Any = None) -> Ground:
        """Raises: ValueError for a task of another kind, and what the task says of its rows."""
        asked = task_of(task, {"text": text, "pair": pair, "label": label})
        if not isinstance(asked, SequenceTask) or asked.name != "sequence":
            raise ValueError(f"task {asked.name!r}; ways to learn are compared row by row, by whether one label is right: give task=\"sequence\"")
        rows, held_out = read_rows(train), read_rows(validation)
        check_columns(asked, {"training": rows, "validation": held_out})
        asked.labels(rows, held_out)
        check_held_out(rows, held_out, asked.asks)
        return cls(model, tok, asked, rows, held_out, vectors)

    @property
    def truth(self) -> list[str]:
        return label_names(self.held_out, self.task.label, "validation")

    @property
    def names(self) -> list[str]:
        """The labels, sorted."""
        return sorted({*label_names(self.train, self.task.label, "training")})

    @property
    def fingerprint(self) -> str:
        return hash_rows([*self.train, *self.held_out], self.task.columns)

    def draw(self, n: int, seed: int) -> list[dict]:
        """n training rows that keep the shares of the labels; with one seed the larger draws hold the smaller ones.

        Raises: ValueError for fewer rows than n, or a draw without one of the labels.
        """
        if n > len(self.train):
            raise ValueError(f"a size of {n:,} and {len(self.train):,} training rows; every size is drawn from these: give sizes up to {len(self.train):,}, or more rows")
        rows = sample_rows(self.train, n, seed, by=self.task.label)
        if absent := sorted(set(self.names) - {*label_names(rows, self.task.label, "training")}):
            raise ValueError(f"{n} rows drawn with seed {seed} hold none of the label {absent[0]!r}; what no row shows cannot be learned: "
                             f"give {len(self.names)} rows or more to each size, or leave rare labels out")
        return rows

    def right(self, learned: Learned) -> Bool[np.ndarray, "V"]:
        return np.array([a == b for a, b in zip(learned.answers, self.truth, strict=True)])

    def learn(self, way: str, rows: Sequence[dict], seed: int, **settings: Any) -> Learned:
        """Learn from these rows.

        Args: way: a baseline of tasks.baselines; "features" (the frozen body's mean states and a logistic regression), "random" (full tuning of the same
              architecture with random weights), or a strategy of `finetune`. settings: of `finetune`, for the ways that tune.
        """
        if way in BASELINES:
            return self.count(way, rows, seed)
        return self.estimate(rows, settings.get("max_length")) if way == "features" else self.tune(way, rows, seed, **settings)

    def count(self, way: str, rows: Sequence[dict], seed: int) -> Learned:
        vectors = self.vectors
        if way == "vectors" and vectors is None:
            vectors = token_vectors(self.model, self.tok, spoken([*self.train, *self.held_out], self.task.asks))
        began = time.perf_counter()
        found = baseline(way, list(rows), self.held_out, self.task, vectors=vectors, seed=seed)
        asked = time.perf_counter()
        answers = [one.label for one in found.answer(self.held_out)]
        answering = time.perf_counter() - asked
        return Learned(answers, max(0.0, asked - began - answering), answering, found.parameters)

    def estimate(self, rows: Sequence[dict], max_length: int | None = None) -> Learned:
        """The mean over the tokens of each text of the body's last states, and scikit-learn's logistic regression on them."""
        from sklearn.linear_model import LogisticRegression

        def states(rows: Sequence[dict]) -> Float[np.ndarray, "N D"]:
            with tempfile.TemporaryDirectory() as cache:
                return extract_features(self.model, self.tok, list(rows), self.task.text, self.task.pair, None, pooling="mean", max_length=max_length, cache=cache)[0]
        began = time.perf_counter()
        fitted = LogisticRegression(max_iter=1000).fit(states(rows), label_names(rows, self.task.label, "training"))
        asked = time.perf_counter()
        answers = fitted.predict(states(self.held_out)).tolist()
        return Learned(answers, asked - began, time.perf_counter() - asked, fitted.coef_.size + fitted.intercept_.size)

    def tune(self, way: str, rows: Sequence[dict], seed: int, **settings: Any) -> Learned:
        chosen = {**SETTINGS, **settings}
        if chosen.get("steps") is None:
            chosen["epochs"] = max(chosen["epochs"], math.ceil(LEAST_STEPS * chosen["batch_size"] / len(rows)))
        else:
            chosen["epochs"] = settings.get("epochs")           # or three epochs of few rows would end before the steps
        model = random_twin(self.model, seed) if way == "random" else copy.deepcopy(self.model)
        result = finetune(model, self.tok, self.task, train=list(rows), strategy="full" if way == "random" else way, seed=seed, **chosen)
        if result.training.stopped == "interrupted":
            raise KeyboardInterrupt
        asked, limit = time.perf_counter(), longest(model, self.tok, chosen.get("max_length"))
        texts, *pairs = ([row[name] for row in self.held_out] for name in self.task.asks)
        answers = [one.label for one in self.task.predict(model, self.tok, texts, pairs[0] if pairs else None, 32, limit)]
        return Learned(answers, result.seconds, time.perf_counter() - asked, result.report.trainable)


def token_vectors(model: Model, tok: Tokenizer, words: set[str]) -> Mapping[str, Float[np.ndarray, "D"]]:
    """Static vectors that need no file: of each word, the mean of the rows of the model's token table for its pieces."""
    table = model.embed.tokens.weight.detach().float().cpu()
    pieces = {word: tok.encode(f" {word}", specials=False) for word in words}
    return {word: table[torch.tensor(ids)].mean(0).numpy() for word, ids in pieces.items() if ids}


@dataclass(frozen=True)
class Resampled:
    """Shares of right answers, and the same shares on resamples: of the held-out rows, the same for all runs, and of the seeds."""

    values: Float[np.ndarray, "*K"]
    draws: Float[np.ndarray, "R *K"]

    def interval(self, *place: Any) -> Interval:
        return Interval(float(self.values[place]), *ends(self.draws[(slice(None), *place)]))

    @classmethod
    def of(cls, right: Bool[np.ndarray, "*K S V"], seed: int = 0) -> Resampled:
        """right: for each run of a kind, with each seed, each held-out row. Source: Efron 1979. With three seeds their spread is known roughly, and rather too small."""
        S, V = right.shape[-2:]
        rows, seeds = resampled(np.ones(V), seed) / V, resampled(np.ones(S), seed + 1) / S                         # (R, V), (R, S)
        shares = right.astype(float) @ rows.T                                                                      # (*K, S, R)
        return cls(np.asarray(right.mean((-2, -1))), np.moveaxis(np.einsum("...sr,rs->...r", shares, seeds), -1, 0))
