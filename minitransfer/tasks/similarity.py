"""How alike two texts are: each becomes a vector, and the vectors' angle is the answer."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from ..generate import embed
from ..nn.heads import NEGATIVES, SIMILARITY
from ..nn.model import Model
from ..objectives.base import INPUTS
from ..text import PairBatches, Tokenizer
from ..text.readers import column
from ..training.evaluate import Evaluation
from ..training.ranks import each
from .intervals import with_interval
from .metrics import Numbers, wilson
from .regression import NumberPrediction, numbers_of


def cosines(batches: PairBatches, negatives: bool) -> Evaluation:
    """pearson and spearman of cosine and label; with negatives the share of texts whose own partner is the nearest of the batch."""
    def evaluate(model: Model) -> dict[str, float]:
        def ask(k: int) -> tuple[float, int, Tensor, Tensor]:
            batch = {name: t.to(model.device) for name, t in batches[k].items()}
            inputs: dict[str, Any] = {name: t for name, t in batch.items() if name in INPUTS}
            body = model.body(**inputs)
            a, b = normalize(model.head(body).float(), dim=-1).chunk(2)
            nearest = int(((a @ b.T).argmax(1).cpu() == torch.arange(len(a))).sum())
            return float(model.head.loss(body, batch["labels"])[0]), nearest, batch["labels"].float().cpu(), (a * b).sum(1).cpu()
        numbers, right, n, loss = Numbers(), 0, 0, 0.0
        for one, nearest, truth, answer in each(range(len(batches)), ask):
            loss, right, n = loss + one, right + nearest, n + len(answer)
            numbers.add(truth, answer)
        found = with_interval("accuracy", right / n, wilson(right, n)) | {"n": float(n)} if negatives else numbers.metrics()
        return found | {"loss": loss / n}
    return evaluate


@dataclass(frozen=True)
class SimilarityTask:
    """Rows with two texts and how alike they are; or without a label, where the two belong together and every other text of the batch does not.

    Args: label: the column of the score, None: there is none. highest: the score that means the same; scores are divided by it.
    """

    name: ClassVar[str] = "similarity"
    head: ClassVar[str] = "embedding"
    text: str = "text"
    pair: str = "pair"
    label: str | None = "label"
    highest: int | float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.highest < math.inf:
            raise ValueError(f"highest={self.highest}; scores are divided by it: give the score that means the same, 5.0 for scores from 0 to 5")

    @property
    def problem(self) -> str:
        return NEGATIVES if self.label is None else SIMILARITY

    @property
    def best(self) -> str:
        return "accuracy higher" if self.label is None else "spearman higher"

    @property
    def columns(self) -> dict[str, Any]:
        return {"text": self.text, "pair": self.pair, "label": self.label}

    @property
    def settings(self) -> dict[str, Any]:
        return {"highest": self.highest}

    @property
    def asks(self) -> list[str]:
        return [self.text, self.pair]

    def scores(self, rows: Sequence[dict], split: str) -> Tensor:
        if self.label is None:
            return torch.zeros(len(rows))
        found = numbers_of(rows, self.label, split) / self.highest
        if len(wrong := (found.abs() > 1).nonzero()):
            i = int(wrong[0])
            raise ValueError(f"{split} row {i}: {self.label!r} is {float(found[i]) * self.highest:g}; a cosine is at most 1: "
                             "say which score means the same, highest=5 for scores from 0 to 5 (in Python SimilarityTask(highest=5))")
        return found

    def labels(self, train: Sequence[dict], validation: Sequence[dict]) -> list[str]:
        """There are no classes. Raises: ValueError for rows without a score, with one above the highest, or all with the same."""
        for split, rows in (("training", train), ("validation", validation)):
            scores = self.scores(rows, split)
            if self.label is not None and len(scores) > 1 and bool((scores == scores[0]).all()):
                raise ValueError(f"all {len(scores)} {split} rows have {self.label!r} {float(scores[0]) * self.highest:g}; there is nothing to tell apart: if each row's "
                                 "texts belong together, use SimilarityTask(label=None), or check the column")
        return []

    def batches(self, rows: Sequence[dict], tok: Tokenizer, labels: Sequence[str], batch_size: int | None, max_tokens: int | None,
                max_length: int | None, seed: int) -> PairBatches:
        if batch_size is None:
            raise ValueError(f"max_tokens={max_tokens} for pairs; the other texts of a batch matter here, so its size is a setting of its own: give batch_size")
        if self.label is None and min(batch_size, len(rows)) < 2:
            raise ValueError(f"batch_size={batch_size} of {len(rows)} rows without scores; a pair is learned against the other pairs of its batch, and there "
                             "are none: give two rows and batch_size=2 at least")
        first, second = (tok.encode_rows(column(rows, name), None, max_length) for name in (self.text, self.pair))
        return PairBatches(first, second, self.scores(rows, "a"), tok, batch_size, seed)

    def evaluation(self, batches: Any) -> Evaluation:
        return cosines(batches, self.label is None)

    def predict(self, model: Model, tok: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, batch_size: int,
                max_length: int | None) -> list:
        """The cosine of each pair, times `highest`; texts are read as in tuning, without a prompt. Raises: ValueError without pairs."""
        if pairs is None:
            raise ValueError("texts without pairs; a similarity is that of two: give pairs=, or use embed for vectors")
        a, b = (normalize(embed(model, tok, list(many), batch_size, max_length, prompt=""), dim=-1) for many in (texts, pairs))
        return [NumberPrediction(float(value) * self.highest) for value in (a * b).sum(1)]


def search(queries: Float[Tensor, "Q D"], corpus: Float[Tensor, "N D"], k: int = 10, chunk: int = 65_536) -> tuple[Float[Tensor, "Q k"], Int[Tensor, "Q k"]]:
    """The k vectors of the corpus with the largest cosine to each query.

    Args:    queries, corpus: as `embed` gives them; a model with prompts wants each side's own, prompt="query" and prompt="passage".
             chunk: vectors of the corpus compared at a time: Q x chunk cosines are held, however large the corpus.
    Returns: cosines and row numbers, the nearest first; k is at most N.
    Raises:  ValueError for k < 1 or an empty corpus.
    """
    if k < 1 or not len(corpus):
        raise ValueError(f"k={k} of {len(corpus)} vectors; there must be at least one of each: give k of 1 or more, and a corpus")
    queries, best = normalize(queries.float(), dim=-1), torch.empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.long)
    for start in range(0, len(corpus), chunk):
        found = queries @ normalize(corpus[start:start + chunk].float(), dim=-1).T
        best, index = torch.cat([best, found], 1), torch.cat([index, torch.arange(start, start + found.shape[1]).expand(len(queries), -1)], 1)
        best, order = best.topk(min(k, best.shape[1]))
        index = index.gather(1, order)
    return best, index
