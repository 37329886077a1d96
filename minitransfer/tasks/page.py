"""The page of a tuned model: what it says of held-out rows, right and wrong, beside what every run's page has."""
from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..nn.model import Model
from ..report import Html, confusion, paragraph, prediction_case, scatter, section, table, wide
from ..text import Tokenizer, TruncationWarning, label_name
from ..training.page import looks
from .base import Task
from .entities import are_iob, repaired
from .multilabel import MultiLabelTask
from .regression import NumberPrediction
from .sequence import SequenceTask
from .span import SpanTask, answers_of
from .squad import exact
from .token import TokenTask

MOST_ROWS, MOST_CASES = 500, 5     # rows a page asks the model about again; examples of a kind


@dataclass(frozen=True)
class Case:
    """One decision: what was asked, what is true, what the model says and how sure it is; `asked` as attention reads it."""

    words: str
    truth: str
    answer: str
    probability: float
    asked: tuple[str, str | None]


def asked_of(task: Task, row: dict) -> tuple[str, str | None]:
    """The text of a row, and the second one if there are two."""
    first, *rest = (value if isinstance(value, str) else " ".join(value) for value in (row[name] for name in task.asks))
    return first, rest[0] if rest else None


def words_of(row: dict, task: TokenTask, answers: Sequence[Any]) -> list[Case]:
    """A decision for each word, which is marked in its sentence."""
    words, tags = row[task.words], [label_name(tag) for tag in row[task.tags]]
    tags = repaired(tags) if are_iob(tags) else tags
    return [Case(" ".join([*words[:i], f"[{word}]", *words[i + 1:]]), tag, answer.label, answer.probability, (" ".join(words), None))
            for i, (word, tag, answer) in enumerate(zip(words, tags, answers, strict=True)) if answer.label is not None]


def cases_of(task: Task, row: dict, answer: Any) -> list[Case]:
    """The decisions of one row; of a task whose answers are numbers, or that is not ours, there are none."""
    asked = asked_of(task, row)
    words = " / ".join(one for one in asked if one is not None)
    if isinstance(task, TokenTask):
        return words_of(row, task, answer)
    if isinstance(task, SpanTask):
        truths = [text for text, _ in answers_of(row, task.answers, "a row")] or [""]
        found = next((truth for truth in truths if exact(answer.text, truth)), None)
        return [Case(asked[0], found or truths[0] or "no answer", (answer.text if found is None else found) or "no answer", answer.probability, asked)]
    if isinstance(task, MultiLabelTask):
        truth, said = (", ".join(sorted(map(label_name, names))) or "none" for names in (row[task.label], answer.labels))
        return [Case(words, truth, said, math.prod(max(p, 1 - p) for p in answer.probabilities.values()), asked)]
    if isinstance(task, SequenceTask) and not isinstance(answer, NumberPrediction):
        return [Case(words, label_name(row[task.label]), answer.label, answer.probability, asked)]
    return []


def examples(cases: Sequence[Case]) -> list[Html]:
    """The surest mistakes, and the surest and the least sure of the right answers."""
    by_trust = sorted(cases, key=lambda one: -one.probability)
    wrong, right = ([one for one in by_trust if (one.truth != one.answer) is mistaken] for mistaken in (True, False))
    some = right if len(right) <= 4 else [*right[:2], *right[-2:]]
    return [section(title, *(prediction_case(one.words, one.truth, one.answer, one.probability) for one in shown) if shown else paragraph("none"))
            for title, shown in (("The surest mistakes", wrong[:MOST_CASES]), ("Right: the two surest and the two least sure", some))]


def numbers(task: Any, rows: Sequence[dict], answers: Sequence[NumberPrediction]) -> list[Html]:
    """Given and predicted numbers, and the rows where they are furthest apart."""
    far = sorted(((float(row[task.label]), one.value, row) for row, one in zip(rows, answers, strict=True)), key=lambda three: -abs(three[0] - three[1]))
    worst = [(" / ".join(filter(None, asked_of(task, row))), f"{truth:.3g}", f"{value:.3g}") for truth, value, row in far[:MOST_CASES]]
    return [section("Given and predicted", scatter("held-out rows", [(truth, value) for truth, value, _ in far], "given", "predicted")),
            section("Furthest apart", wide(table([("text", "given", "predicted"), *worst])))]


def answered(task: Task, model: Model, tok: Tokenizer, rows: Sequence[dict], limit: int | None) -> list:
    """What the model says of rows. The batches of the same rows have told of truncation."""
    columns = [[row[name] for row in rows] for name in task.asks]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        return task.predict(model, tok, columns[0], columns[1] if len(columns) > 1 else None, 32, limit)


def judged(task: Task, model: Model, tok: Tokenizer, rows: Sequence[dict], limit: int | None) -> list[Html]:
    """The sections that need the model: confusions, examples, numbers, and where it looks in one of them. rows: of long lists every n-th is asked."""
    if not rows:
        return []
    if getattr(task, "label", "") is None:                     # pairs that belong together: nothing is answered
        return looks(model, tok, *asked_of(task, rows[0]))
    some = rows[:: -(-len(rows) // MOST_ROWS)]
    answers = answered(task, model, tok, some, limit)
    cases = [case for row, answer in zip(some, answers, strict=True) for case in cases_of(task, row, answer)]
    parts = examples(cases) if cases else numbers(task, some, answers) if isinstance(answers[0], NumberPrediction) else []
    if cases and not isinstance(task, MultiLabelTask | SpanTask):
        counted = paragraph(f"{len(cases):,} decisions of {len(some):,} of {len(rows):,} held-out rows; a row is a true label, a column an answer", class_="soft")
        parts.insert(0, section("Confusions", counted, confusion([(one.truth, one.answer) for one in cases])))
    first = max(cases, key=lambda one: (one.truth != one.answer, one.probability)).asked if cases else asked_of(task, some[0])
    return [*parts, *looks(model, tok, *first)]


def metric_table(metrics: dict[str, float]) -> Html:
    """Each metric with its interval, if it has one."""
    def interval(name: str) -> str:
        return f"{metrics[f'{name}_low']:.4g} to {metrics[f'{name}_high']:.4g}" if f"{name}_low" in metrics else ""
    rows = [(name, f"{value:.4g}", interval(name)) for name, value in metrics.items() if not name.endswith(("_low", "_high"))]
    return wide(table([("held-out metric", "value", "95 % interval"), *rows]))
