"""Rows in, a tuned model out: the head, the strategy, the loop and the files, in this order."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..nn.heads import EmbeddingHead
from ..nn.model import Model
from ..text import Tokenizer, read_rows
from ..training import Batches, TrainResult, TrainSettings, adapt, param_groups
from ..training import train as run
from ..training.evaluate import refuse_test_split
from ..training.state import STATE
from ..transfer.base import Strategy
from ..transfer.forgetting import Keep
from ..transfer.groups import TrainableReport, set_trainable, trainable_report
from ..transfer.strategies import strategy as strategy_of
from ..weights.files import read_json, recover, write_json
from .base import Task, longest, supervised
from .named import check_columns, task_of, texts_of
from .split import check_held_out

SHOWN = ("accuracy", "f1", "matthews", "f1_micro", "entity_f1", "entity_f1_lenient", "pearson", "spearman", "exact")


@dataclass(frozen=True, repr=False)
class FinetuneResult:
    """What came out; prints as a sentence. `metrics`: of the validation rows, for the weights the model now has; the interval is Wilson's."""

    model: Model
    metrics: dict[str, float]
    report: TrainableReport
    training: TrainResult
    out: Path | None                    # the run's folder; the tuned model or adapter is in out/model

    @property
    def history(self) -> list[dict]:
        return self.training.history

    @property
    def seconds(self) -> float:
        return self.training.seconds

    @property
    def peak_memory(self) -> int:
        return self.training.peak_memory

    def __str__(self) -> str:
        held_out, m = "no validation rows", self.metrics
        if m:
            shown = [f"{name} {value:.4f}" + (f" (95 %: {m[f'{name}_low']:.4f} to {m[f'{name}_high']:.4f})" if f"{name}_low" in m else "")
                     for name, value in m.items() if name in SHOWN]
            held_out = f"{', '.join(shown)} on {m['n']:.0f} held-out targets"
        return (f"{held_out}; {self.report.trainable:,} of {self.report.total.parameters:,} parameters trained, {self.training.steps} steps, "
                f"{self.seconds:.1f} s, {self.peak_memory / 1e6:,.0f} MB at the peak")

    __repr__ = __str__


def tune_language(model: Model, tok: Tokenizer, texts: list[str], epochs: int | float, chosen: TrainSettings, length: int, out: Path | None, resume: bool) -> TrainResult:
    """The language model of a pretrained model goes on with the texts of the task. Its run is in out/language, and goes on where it stopped."""
    place = None if out is None else out / "language"
    return adapt(model, tok, texts, out=place, resume=resume and place is not None and place.is_dir(), length=min(length, 128), epochs=epochs, seed=chosen.seed,
                 precision=chosen.precision, progress=chosen.progress)


def pooling_of(model: Model) -> dict[str, Any]:
    """What an embedding head is made with: an adapter's file has no place for it."""
    return {"head": {"pooling": model.head.pooling, "normalise": model.head.normalise}} if isinstance(model.head, EmbeddingHead) else {}


def put_head(model: Model, task: Task, labels: list[str], seed: int) -> None:
    """A fresh head for the labels, unless the model's own has an output for each of them."""
    known = model.head_name == task.head and set(labels) <= set(model.labels or ())
    if not known or (labels and task.problem != getattr(model.head, "problem", None)):
        model.set_head(task.head, labels or None, seed=seed)
    if task.problem is not None:
        model.head.use(task.problem)


def hash_rows(rows: Sequence[dict], columns: dict[str, Any]) -> str:
    """What identifies rows: the columns that are read."""
    names = [name for name in columns.values() if name is not None]
    return hashlib.sha256(json.dumps([[row.get(name) for name in names] for row in rows], default=str).encode()).hexdigest()[:16]


def follow(model: Model, strategy: Strategy, steps_per_epoch: float, start: int) -> Callable[[dict], None] | None:
    """What freezes and unfreezes during the run, for `on_step`; the state of step `start` is set at once."""
    if strategy.now is None:
        return None

    def set_phase(step: int) -> None:
        set_trainable(model, strategy.at(model, step / steps_per_epoch))
    set_phase(start)
    return lambda record: set_phase(record["step"])


def steps_done(out: Path | None, resume: bool) -> int:
    """The step from which a run goes on."""
    if not resume or out is None or not recover(out / "last").is_dir():
        return 0
    return int(read_json(out / "last" / STATE)["progress"]["step"])


def once(*streams: Batches | None) -> Iterator[dict[str, Tensor]]:
    """Every batch of one epoch of each stream."""
    return (stream[k] for stream in streams if stream is not None for k in range(len(stream)))


def metrics_of(result: TrainResult) -> dict[str, float]:
    """The evaluation of the weights that were kept."""
    if result.best is None or result.stopped == "interrupted":
        return result.metrics
    return next(one["evaluation"] for one in result.history if one["step"] == result.best["step"] and "evaluation" in one)


def finetune(model: Model, tok: Tokenizer, task: str | Task = "sequence", *, train: Any, validation: Any = None, strategy: str | Strategy = "full", keep: Keep | None = None,
             text: str | None = None, pair: str | None = None, label: str | None = None, out: str | Path | None = None, resume: bool = False,
             batch_size: int | None = None, max_tokens: int | None = None, max_length: int | None = None,
             on_step: Callable[[dict], None] | None = None, **settings: Any) -> FinetuneResult:
    """Tune a pretrained model on labelled rows; it is changed in place.

    Args:    task: "sequence" (one label a text), "multilabel" (a list of labels), "regression" (a number), "token" (one label a word; rows of "words" and
             "tags"), "span" (an answer in a context; rows of "question", "context" and "answers"), "similarity" (how alike two texts are; rows of "text",
             "pair" and "label"), or a task object, which may have settings of its own.
             train, validation: anything `read_rows` reads. The labels are those of the training rows.
             strategy: a name of transfer.strategies ("full", "head", "features", "last:2", "discriminative", "ulmfit", "bitfit", "lora", ...), or a Strategy,
             such as lora(r=16): what trains, at which rate and when, and what is saved. `transfer.plan` shows it beforehand.
             keep: l2sp(), ewc(...) or replay(...) of transfer.forgetting: a pull towards what the model was, beside any strategy.
             text, pair, label: the columns, where they are not called as above: text is also that of the words or the question, pair that of the context,
             label that of the tags or answers.
             out: the run's folder; out/model is then the result with its tokenizer and task.json: the whole model in the standard layout, or
             the adapter.
             resume: go on from the last save in `out`, with a model loaded as it was at the start of the run.
             batch_size: rows a batch (default 32), or max_tokens: tokens a batch, padding included; max_length: texts are cut after so many tokens.
             settings: of TrainSettings. Here by default lr=5e-5 (more where few parameters train: head, lora: 1e-3), 3 epochs, a tenth of them warm-up, an evaluation after each
             epoch, and the weights of the best one are kept: best="accuracy higher". best=None keeps the last.
    Returns: metrics of the validation rows, history, the table of what trained, seconds, peak memory.
    Raises:  ValueError or KeyError for rows, labels, a strategy, settings or a tokenizer that do not fit, before anything is trained;
             and what `train` raises.
    """
    asked, plan = task_of(task, {"text": text, "pair": pair, "label": label}), strategy_of(strategy)
    rows = read_rows(train)
    held_out = [] if validation is None else read_rows(validation)
    chosen = TrainSettings.for_tuning(plan.settings, settings, asked.best if validation is not None else None)
    refuse_test_split(validation, chosen.best)
    check_columns(asked, {"training": rows, "validation": held_out})
    limit, labels = longest(model, tok, max_length, plan.ahead), asked.labels(rows, held_out)
    check_held_out(rows, held_out, asked.asks)
    folder = None if out is None else Path(out)
    if plan.lm_epochs:
        told = tune_language(model, tok, texts_of(asked, rows), plan.lm_epochs, chosen, limit, folder, resume)
        if told.stopped == "interrupted":
            return FinetuneResult(model, {}, trainable_report(model), told, folder)
    put_head(model, asked, labels, chosen.seed)
    sizes = (32 if batch_size is None and max_tokens is None else batch_size, max_tokens, limit, chosen.seed)
    batches = asked.batches(rows, tok, model.labels or labels, *sizes)
    measured = asked.batches(held_out, tok, model.labels or labels, *sizes) if held_out else None
    evaluate = None if measured is None else asked.evaluation(measured)
    report = plan.apply(model, chosen.seed)
    groups = param_groups(model, chosen.weight_decay, plan.rate(model))
    phase = follow(model, plan, len(batches) / chosen.micro_batches, steps_done(folder, resume))

    def each_step(record: dict) -> None:
        for act in (phase, on_step):
            if act is not None:
                act(record)

    def save(tuned: Model, place: Path) -> None:
        plan.save(tuned, place)
        tok.save_pretrained(place)
        about = {"task": asked.name, "columns": asked.columns, "settings": asked.settings, "labels": tuned.labels, "max_length": limit, "strategy": plan.name}
        write_json(place / "task.json", about | pooling_of(tuned))

    data = {"train": hash_rows(rows, asked.columns), "validation": hash_rows(held_out, asked.columns), "tokenizer": tok.fingerprint[:16],
            "labels": ", ".join(model.labels or labels), "strategy": plan.name}
    with plan.during(model, once(batches, measured)):
        objective = plan.objective(model, supervised)
        result = run(model, batches, objective if keep is None else keep(model, objective), chosen, out=folder, evaluate=evaluate, groups=groups, resume=resume,
                     on_step=each_step, save=save, data=data)
    return FinetuneResult(model, metrics_of(result), report, result, folder)
