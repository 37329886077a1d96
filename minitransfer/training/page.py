"""The page a run leaves in its folder: curves, what trained and when, where the model looks, and the manifest."""
from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..config import RecurrentConfig
from ..nn.model import Model
from ..report import Html, Table, curves, fold, manifest, page, paragraph, section, table, wide, write_page
from ..text import Tokenizer
from ..text.views import attention_view
from ..weights.files import read_json
from . import ranks

if TYPE_CHECKING:
    from .run import TrainResult

REPORT = "report.html"


def changed(result: TrainResult) -> Html:
    """The metrics that are not the same of the model as it came and as it left."""
    moved = [(name, f"{result.before[name]:.6g}", f"{value:.6g}") for name, value in result.after.items() if value != result.before.get(name, value)]
    return wide(table([("held-out metric", "before", "after"), *moved]))


def learned(result: TrainResult) -> list[Html]:
    """What a result shows of itself: a sentence, before and after, and curves."""
    best = None if result.best is None else result.best["metric"]
    return [paragraph(str(result)), *([changed(result)] if result.after else []), curves(result.history, best)]


def looks(model: Model, tok: Tokenizer, text: str, pair: str | None = None) -> list[Html]:
    """A section with the attention of one text; none for a body without attention."""
    return [] if isinstance(model.config, RecurrentConfig) else [section("Where the model looks", attention_view(model, tok, text, pair).html)]


def rates(plan: Table | None) -> Html:
    return Html() if plan is None else fold("Learning rates by step", wide(plan.html()))


def write_report(title: str, result: TrainResult, trained: Table, parts: Callable[[], Sequence[Html]], summary: Sequence[Html] = ()) -> None:
    """Write report.html into the folder of a run that has one and ended; the first rank does.

    Args:  parts: computes the sections between what trained and the manifest. summary: in the place of the result's sentence.
    Warns: where the page cannot be written: the model is saved, and a page is not worth an error.
    """
    if result.out is None or result.stopped == "interrupted" or not ranks.first():
        return
    told = learned(result)
    about = {name: value for name, value in read_json(result.out / "manifest.json").items() if name not in ("result", "before", "after")}
    body = [*(summary or told[:1]), *told[1:], section("What trained", wide(trained.html())), *parts(), section("The run", manifest(about))]
    try:
        write_page(result.out / REPORT, page(title, *body))
    except OSError as why:
        warnings.warn(f"{result.out / REPORT} could not be written ({why.strerror}); the model is saved in {result.out / 'model'} all the same: "
                      "make room, and the same call with resume=True writes the page", UserWarning, stacklevel=3)
