"""The silent failures of training, each as a check of the user's own model, tokenizer and data."""
from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ...nn.given import need_model
from ...nn.model import Model
from ...objectives import Objective
from ...tasks.base import Task
from ...tasks.named import check_columns, task_of
from ...tasks.predict import task_for
from ...text import Tokenizer, corpus, read_rows
from ...text.lines import kind_of
from ...text.readers import KINDS
from ...training.seeds import own_randomness
from ...transfer.base import Strategy
from ...transfer.strategies import strategy as strategy_of
from . import learning, places, reading, rows, vocabulary
from .finding import NOTE, OK, WRONG, Diagnosis, Finding, Tried
from .patient import Patient

Check = Callable[[Patient], Iterable[Finding]]
ROWS_ONLY = set(KINDS) - set(corpus.KINDS)      # files that hold no raw text
# in this order: those that read put no head on the copy yet, and the step that changes its weights is the last
CHECKS: dict[str, Check] = {
    "weights": vocabulary.weights, "vocabulary": vocabulary.vocabulary, "tied weights": vocabulary.tied,
    "padding": reading.padding, "padding side": reading.padding_side, "batch composition": reading.batch_composition, "packing": reading.packing,
    "causal leak": reading.causal,
    "texts": rows.texts, "duplicates": rows.copies, "labels": rows.labels, "truncation": places.truncation, "label alignment": places.alignment,
    "mask statistics": learning.masks, "accumulation": learning.accumulation, "optimizer": learning.optimizer, "learning": learning.learning}


def doctor(model: Model, tok: Tokenizer, data: Any = None, validation: Any = None, test: Any = None, *, task: str | Task | None = None, text: str | None = None,
           pair: str | None = None, label: str | None = None, strategy: str | Strategy | None = None, objective: Objective | None = None,
           groups: Iterable[dict] | torch.optim.Optimizer | None = None, max_length: int | None = None, seed: int = 0) -> Diagnosis:
    """Look for what goes wrong in silence when this model is trained on this data. The model is copied, and stays as it is, as do gradients and random numbers.

    Args:    data: training rows, as for `finetune`, or raw texts, as for `pretrain`; None: the model and the tokenizer alone, on texts of the package.
             validation, test: held-out rows, which are also compared with one another.
             task, text, pair, label: as for `finetune`; task=None: that of the model's head, else "sequence" for rows, and none for texts (also of a .jsonl).
             strategy: as for `finetune`, applied to the copy; None: what trains in the model now does. groups: instead, the optimizer (or its groups) of a loop
             of one's own. objective: the loss of such a loop; None: the task's, or that of the model's vocabulary head. max_length: as for `finetune`.
    Returns: what each check tried and saw, and what to do; a check that has nothing to look at says nothing.
    Raises:  ValueError for what is no model, rows of no task, both strategy and groups; and what readers of files raise.
    """
    need_model(model, "doctor")
    if not isinstance(model, Model) or model.config.patch_size is not None:
        raise ValueError(f"doctor with a {type(model).__name__} that reads no texts; it examines a Model or an EncoderDecoder of ids: give its text model")
    if strategy is not None and groups is not None:
        raise ValueError("doctor with strategy and groups; a strategy makes groups of its own: give one of the two")
    splits = {name: source for name, source in (("training", data), ("validation", validation), ("test", test)) if source is not None}
    asked = task_asked(model, data, task, {"text": text, "pair": pair, "label": label})
    if asked is None and len(splits) > ("training" in splits):
        raise ValueError("validation or test without rows to train on that have a task; raw texts are compared with nothing: give data as rows, and task=")
    read: dict[str, Sequence[dict]] = {} if asked is None else {name: read_rows(source) for name, source in splits.items()}
    if asked is not None:
        check_columns(asked, read)
    given = groups.param_groups if isinstance(groups, torch.optim.Optimizer) else groups
    with own_randomness(model.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patient = Patient(model, tok, asked, read, data if asked is None else None, None if strategy is None else strategy_of(strategy), objective,
                          None if given is None else list(given), max_length, seed)
        found = list(chain.from_iterable(examined(name, check, patient) for name, check in CHECKS.items()))
    return Diagnosis(tuple(sorted(found, key=lambda one: (WRONG, NOTE, OK).index(one.result))))


def task_asked(model: Model, data: Any, task: str | Task | None, columns: dict[str, str | None]) -> Task | None:
    """The task that was named, that of the model's head, or for rows to a model of another head that of a label for each text."""
    is_rows = kind_of(Path(data)) in ROWS_ONLY if isinstance(data, str | Path) else not isinstance(data, list) or (bool(data) and isinstance(data[0], dict))
    if data is None or (task is None and not is_rows):
        return None
    try:
        own: str | Task = task_for(model) if task is None and not any(columns.values()) else "sequence"
    except ValueError:
        own = "sequence"
    return task_of(own if task is None else task, columns)


def examined(name: str, check: Check, patient: Patient) -> Iterator[Finding]:
    """What a check finds. One that cannot be carried out is a finding too."""
    try:
        yield from list(check(patient))
    except (ValueError, LookupError, RuntimeError, AttributeError, TypeError, ArithmeticError) as e:
        seen, do = rows.parted(str(e.args[0] if e.args else e))
        yield Tried(name, "to carry this check out").wrong(f"it failed: {seen}", do)


__all__ = ["CHECKS", "Diagnosis", "Finding", "doctor"]
