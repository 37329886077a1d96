"""What the pages of a run are made of, from plain data."""
from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .chart import Number, Points, key, line_chart
from .html import Html, element, fold, page, paragraph, section, text
from .table import Table, naming, table, wide

MOST_LABELS = 30        # a table of more rows and columns shows nothing; the commonest confusions do


def facts(values: Mapping[str, object]) -> Html:
    """Names and values, one pair a line."""
    return element("dl", *(element(tag, one) for name, value in values.items() for tag, one in (("dt", name), ("dd", value))))


def written(value: object) -> str:
    """A value of a manifest on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {written(one)}" for name, one in value.items() if one is not None)
    if isinstance(value, list | tuple):
        return ", ".join(map(written, value))
    return f"{value:,}" if type(value) is int else f"{value:.6g}" if isinstance(value, float) else str(value)


def manifest(values: Mapping[str, object]) -> Html:
    """What a run was, subject by subject; what it is made of unfolds."""
    plain = {name: written(value) for name, value in values.items() if not isinstance(value, Mapping)}
    inner = {name: {one: written(it) for one, it in value.items() if it is not None} for name, value in values.items() if isinstance(value, Mapping)}
    return Html(facts(plain) + "".join(fold(name, facts(found)) for name, found in inner.items()))


def prediction_case(words: str, truth: str, answer: str, probability: Number) -> Html:
    """A text, what it is and what a model says it is."""
    right = truth == answer
    verdict = " is right" if right else f" is wrong: the label is {truth}"
    said = paragraph(element("b", f"{answer}, {probability:.0%}"), verdict, class_="soft")
    return element("div", paragraph(words), said, class_="case good" if right else "case bad")


def confusion(pairs: Sequence[tuple[str, str]]) -> Html:
    """How often each label, (truth, answer), was answered with each: a row a truth, shaded by its share of the row. Of many labels, the commonest confusions."""
    counts, labels = Counter(pairs), sorted({label for pair in pairs for label in pair})
    if len(labels) > MOST_LABELS:
        wrong = [(truth, answer, n) for (truth, answer), n in counts.most_common() if truth != answer][:MOST_LABELS]
        return wide(table([("true label", "answered with", "times"), *wrong]))

    def cell(truth: str, answer: str, of: int) -> Html:
        n = counts[truth, answer]
        return element("td", f"{n:,}", class_="cell", style=f"--w:{n / max(of, 1):.2f}")
    sums = {truth: sum(counts[truth, answer] for answer in labels) for truth in labels}
    head = element("tr", *(element("th", name, scope="col") for name in ("true label", *labels)))
    rows = [element("tr", element("th", truth, scope="row"), *(cell(truth, answer, sums[truth]) for answer in labels)) for truth in labels]
    return wide(element("table", element("thead", head), element("tbody", *rows), **naming(labels)))


def side_by_side(*figures: Html) -> Html:
    return element("div", *figures, class_="charts")


def series(records: Sequence[Mapping], name: str) -> Points:
    return [(one["step"], one[name]) for one in records if one.get(name) is not None]


def curves(history: Sequence[Mapping], metric: str | None = None) -> Html:
    """Loss, held-out metric and learning rate over the steps, from the records of a log.

    Args: metric: of the evaluations; None: the first they have beside the loss.
    """
    held_out = [{"step": one["step"], **one["evaluation"]} for one in history if "evaluation" in one]
    others = (name for one in held_out for name in one if name not in ("step", "loss", "n", "targets"))
    metric = next(others, None) if metric in (None, "loss") else metric
    losses = {"training": series(history, "loss"), "held-out": series(held_out, "loss")}
    shown = [element("div", line_chart("Loss", losses, "step"), key(losses))]
    shown += [line_chart(f"Held-out {metric}", {metric: series(held_out, metric)}, "step")] if metric is not None else []
    return side_by_side(*shown, line_chart("Learning rate", {"learning rate": series(history, "lr")}, "step"))


def drawn(name: str, figure: Any) -> Html:
    """A chart of ours as it is, one of matplotlib as a picture within the page."""
    if isinstance(figure, Html):
        return figure
    figure.savefig(buffer := io.BytesIO(), format="png", dpi=150, bbox_inches="tight", transparent=True)
    return element("figure", Html(f'<img alt="{text(name)}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}" />'), element("figcaption", name))


def study_page(title: str, tables: Mapping[str, Table], figures: Mapping[str, Any], about: Mapping[str, object], more: Sequence[Html] = ()) -> Html:
    """A page of what was measured: each figure and each table under its name, more sections, and how it was done.

    Args: figures: charts of ours, or figures of matplotlib; about: what somebody needs to judge it and to run it again.
    """
    return page(title, side_by_side(*(drawn(name, one) for name, one in figures.items())), *(section(name, wide(one.html())) for name, one in tables.items()), *more,
                section("How it was measured", manifest(about)))
