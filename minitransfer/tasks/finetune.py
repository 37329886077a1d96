"""Rows in, a tuned model out: the head, the strategy, the loop and the files, in this order."""
from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..nn.given import need_model
from ..nn.heads import EmbeddingHead
from ..nn.model import Model
from ..report import Html, fragment, paragraph, wide
from ..text import Tokenizer, read_rows
from ..training import TrainResult, TrainSettings, adapt, ranks
from ..training.evaluate import refuse_test_split
from ..training.page import learned, rates, write_report
from ..training.run import check_place
from ..training.tune import tune
from ..transfer.base import Strategy
from ..transfer.forgetting import Keep, check_keep
from ..transfer.groups import TrainableReport, trainable_report
from ..transfer.strategies import strategy as strategy_of
from ..weights.files import write_json
from .base import Task, longest, supervised
from .metrics import shown
from .named import check_columns, task_of, texts_of
from .page import judged, metric_table
from .split import check_held_out


@dataclass(frozen=True, repr=False)
class FinetuneResult:
    """What came out; prints as a sentence, after that of the baseline if there was one. `metrics`: of the validation rows, for the weights the model now has."""

    model: Model
    metrics: dict[str, float]
    report: TrainableReport
    training: TrainResult
    out: Path | None                    # the run's folder; the tuned model or adapter is in out/model
    baseline: dict[str, float] | None = None    # metrics of a copy of the model on whose frozen body only the head was trained

    @property
    def history(self) -> list[dict]:
        return self.training.history

    @property
    def seconds(self) -> float:
        return self.training.seconds

    @property
    def peak_memory(self) -> int:
        return self.training.peak_memory

    @property
    def cost(self) -> str:
        return (f"{self.report.trainable:,} of {self.report.total.parameters:,} parameters trained, {self.training.steps} steps, "
                f"{self.seconds:.1f} s, {self.training.memory}")

    def __str__(self) -> str:
        held_out = shown(self.metrics) if self.metrics else "no validation rows"
        before = "" if self.baseline is None else f"head alone: {shown(self.baseline)}\nthis run:   "
        return f"{before}{held_out}; {self.cost}" + (f"\n{self.report.note}" if self.report.note else "")

    @property
    def summary(self) -> list[Html]:
        """What a page begins with."""
        before = [] if self.baseline is None else [paragraph(f"the head alone: {shown(self.baseline)}")]
        return [paragraph(self.cost), *before, *([metric_table(self.metrics)] if self.metrics else [])]

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return fragment(*self.summary, *learned(self.training)[1:], wide(self.report.html()))


def tune_language(model: Model, tok: Tokenizer, texts: list[str], epochs: int | float, chosen: TrainSettings, length: int, out: Path | None, resume: bool) -> TrainResult:
    """The language model of a pretrained model goes on with the texts of the task. Its run is in out/language, and goes on where it stopped."""
    place = None if out is None else out / "language"
    begun = ranks.from_first(lambda: resume and place is not None and place.is_dir())
    return adapt(model, tok, texts, out=place, resume=begun, length=min(length, 128), epochs=epochs, seed=chosen.seed,
                 precision=chosen.precision, progress=chosen.progress, micro_batches=chosen.micro_batches, shard=chosen.shard)


def pooling_of(model: Model) -> dict[str, Any]:
    """What an embedding head is made with: an adapter's file has no place for it. Projections are those of the base."""
    return {"head": {"pooling": model.head.pooling, "normalise": model.head.normalise, "projections": len(model.head.projections)}} if isinstance(model.head, EmbeddingHead) else {}


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


def metrics_of(result: TrainResult) -> dict[str, float]:
    """The evaluation of the weights that were kept."""
    if result.best is None or result.stopped == "interrupted":
        return result.metrics
    return next(one["evaluation"] for one in result.history if one["step"] == result.best["step"] and "evaluation" in one)


def head_alone(model: Model, tok: Tokenizer, task: Task, train: list[dict], validation: list[dict], settings: dict[str, Any], **sizes: Any) -> dict[str, float]:
    """Metrics of a copy of the model on whose frozen body only the head was trained, at its own rate. Raises: ValueError without validation rows."""
    if not validation:
        raise ValueError("baseline=True and no validation rows; the baseline is a figure to compare with: give validation=, or leave baseline out")
    kept = {name: value for name, value in settings.items() if name != "lr"}
    return finetune(copy.deepcopy(model), tok, task, train=train, validation=validation, strategy="head", **sizes, **kept).metrics


def finetune(model: Model, tok: Tokenizer, task: str | Task = "sequence", *, train: Any, validation: Any = None, strategy: str | Strategy = "full", keep: Keep | None = None,
             text: str | None = None, pair: str | None = None, label: str | None = None, out: str | Path | None = None, resume: bool = False,
             batch_size: int | None = None, max_tokens: int | None = None, max_length: int | None = None, baseline: bool = False,
             on_step: Callable[[dict], None] | None = None, **settings: Any) -> FinetuneResult:
    """Tune a pretrained model on labelled rows; it is changed in place.

    Args:    task: "sequence" (one label a text), "multilabel" (a list of labels), "regression" (a number), "token" (one label a word; rows of "words" and
             "tags"), "span" (an answer in a context; rows of "question", "context" and "answers"), "similarity" (how alike two texts are; rows of "text",
             "pair" and "label"), or a task object, which may have settings of its own.
             train, validation: anything `read_rows` reads. The labels are those of the training rows.
             strategy: a name of transfer.strategies ("full", "head", "features", "last:2", "discriminative", "ulmfit", "bitfit", "lora", ...), or a Strategy,
             such as lora(r=16): what trains, at which rate and when, and what is saved. `transfer.plan` shows it beforehand.
             Around any of them: coral(target) or adversarial(target) of transfer.alignment, for unlabelled text of another domain.
             keep: l2sp(), ewc(...), replay(...) or mixout() of transfer.forgetting: a pull towards what the model was, beside any strategy.
             text, pair, label: the columns, where they are not called as above: text is also that of the words or the question, pair that of the context,
             label that of the tags or answers.
             out: the run's folder; out/model is then the result with its tokenizer and task.json: the whole model in the standard layout, or
             the adapter; out/report.html shows the run, its mistakes and where the model looks.
             resume: go on from the last save in `out`, with a model loaded as it was at the start of the run.
             batch_size: rows a batch (default 32), or max_tokens: tokens a batch, padding included; max_length: texts are cut after so many tokens.
             baseline: first train the head alone, with its own rate, on a copy of the model, for the same epochs; the result prints both, and the
             model starts from what it was.
             settings: of TrainSettings. Here by default lr=5e-5 (more where few parameters train: head, lora: 1e-3), 3 epochs, a tenth of them warm-up, an evaluation after each
             epoch, and the weights of the best one are kept: best="accuracy higher". best=None keeps the last.
    Returns: metrics of the validation rows, history, the table of what trained, seconds, peak memory.
    Raises:  ValueError or KeyError for rows, labels, a strategy, settings or a tokenizer that do not fit, before anything is trained;
             and what `train` raises.
    """
    need_model(model, "finetune")
    ranks.join(model)
    check_keep(keep)
    ranks.from_first(lambda: check_place(out))
    asked, plan = task_of(task, {"text": text, "pair": pair, "label": label}), strategy_of(strategy)
    rows = read_rows(train)
    held_out = [] if validation is None else read_rows(validation)
    chosen = TrainSettings.for_tuning(plan.settings, settings, asked.best if validation is not None else None)
    ranks.check_shares(chosen)
    refuse_test_split(validation, chosen.best)
    check_columns(asked, {"training": rows, "validation": held_out})
    limit, labels = longest(model, tok, max_length, plan.ahead), asked.labels(rows, held_out)
    check_held_out(rows, held_out, asked.asks)
    first = head_alone(model, tok, asked, rows, held_out, settings, batch_size=batch_size, max_tokens=max_tokens, max_length=max_length) if baseline else None
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

    def beside(tuned: Model, place: Path) -> None:
        tok.save_pretrained(place)
        about = {"task": asked.name, "columns": asked.columns, "settings": asked.settings, "labels": tuned.labels, "max_length": limit, "strategy": plan.name}
        write_json(place / "task.json", about | pooling_of(tuned))

    data = {"train": hash_rows(rows, asked.columns), "validation": hash_rows(held_out, asked.columns), "tokenizer": tok.fingerprint[:16],
            "labels": ", ".join(model.labels or labels)}
    report, followed, result = tune(model, batches, supervised, chosen, plan, beside=beside, data=data, measured=[measured] if measured is not None else [], keep=keep,
                                    out=out, evaluate=evaluate, resume=resume, on_step=on_step)
    found = FinetuneResult(model, metrics_of(result), report, result, result.out, first)
    write_report(f"Fine-tuning: {asked.name}, strategy {plan.name}", result, report, lambda: [rates(followed), *judged(asked, model, tok, held_out, limit)], found.summary)
    return found
