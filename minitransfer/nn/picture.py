"""A model as a notebook shows it: body and head, group by group, with shapes, parameters and what is frozen."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..report import Display, Html, fold, paragraph, section, table, wide
from .groups import layer_groups

if TYPE_CHECKING:
    from torch import nn

    from .model import Model

HEADS = ("pooler", "head")


def state(parameters: Sequence[nn.Parameter]) -> str:
    n, trains = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)
    return f"{n:,} parameters, " + ("frozen" if not trains else "all train" if trains == n else f"{trains:,} train")


def group_of(name: str, parameters: dict[str, nn.Parameter]) -> Html:
    rows = [(one.removeprefix(name + "."), " x ".join(map(str, p.shape)), f"{p.numel():,}", "trains" if p.requires_grad else "frozen") for one, p in parameters.items()]
    return fold(f"{name}: {state(list(parameters.values()))}", wide(table([("parameter", "shape", "numbers", "now"), *rows])))


def picture(model: Model) -> Display:
    """Groups unfold into their parameters."""
    parameters = dict(model.named_parameters())
    groups = {name: group_of(name, {one: parameters[one] for one in names}) for name, names in layer_groups(model).items()}
    parts = [section(title, *(markup for name, markup in groups.items() if (name in HEADS) == (title != "body")))
             for title in ("body", f"head: {model.head_name}" + (f" ({', '.join(model.labels)})" if model.labels else ""))]
    told = f"{type(model).__name__}: {state(list(parameters.values()))}"
    return Display(Html(paragraph(told) + "".join(parts)), told)
