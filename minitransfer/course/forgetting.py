"""11, forgetting."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..study import cka
from ..transfer import ewc
from .exercise import demand, exercise, gap
from .models import moved


class Still:
    """A task whose loss is zero everywhere: what is left is the pull."""

    def __call__(self, model: Any, batch: Any, generator: Any) -> tuple[torch.Tensor, int]:
        return sum((p.sum() for p in model.parameters()), torch.zeros(())) * 0.0, 3


@exercise("11", "ewc_pull(now, start, importance, strength) -> strength / 2 sum F (w - w0)^2 over the names in start")
def ewc_pull(answer: Callable) -> str:
    model = moved("mini-bert")
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    importance = {name: torch.rand(p.shape, generator=torch.Generator().manual_seed(p.numel())) for name, p in start.items()}
    objective = ewc(importance, strength=0.25)(model, Still())
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.01).add_(0.01)
    pull, n = objective(model, {}, torch.Generator())
    now = dict(model.named_parameters()) | {"new.weight": torch.ones(3, requires_grad=True)}     # a new head has no start
    found = answer(now, start, importance, 0.25)
    worst = gap("the pull", torch.as_tensor(found), pull / n)
    wanted, given = ({name: torch.autograd.grad(one, model.get_parameter(name), retain_graph=True)[0] for name in ("blocks.1.attn.q_proj.weight", "embed.norm.bias")}
                     for one in (pull / n, found))
    worst = max(worst, *(gap(f"the slope at {name}", given[name], wanted[name]) for name in wanted))
    return f"as EWC in the engine pulls a mini-bert, and its slopes, within {worst:.0e}"


@exercise("11", "fisher_diagonal(slopes) -> the diagonal of the Fisher information from the gradients (n, D) of n texts")
def fisher_diagonal(answer: Callable) -> str:
    slopes = torch.randn(7, 11) + torch.arange(11)
    gap("the diagonal", answer(slopes), (slopes * slopes).sum(0) / 7)
    return "seven texts, eleven weights"


@exercise("11", "linear_cka(x, y) -> how alike two sets of states are, in [0, 1]")
def linear_cka(answer: Callable) -> str:
    x = torch.randn(200, 7).double() + 3
    pairs = {"the same": (x, x), "turned round": (x, x @ torch.linalg.qr(torch.randn(7, 7).double())[0]), "shifted and scaled": (x, 5 * x - 2),
             "of other widths": (x, torch.randn(200, 3).double()), "mixed": (x, torch.cat([x[:, :3], torch.randn(200, 4).double()], 1) + 9)}
    for what, (a, b) in pairs.items():
        found, truth = float(answer(a, b)), cka(a, b).value
        demand(math.isclose(found, truth, abs_tol=1e-9), f"{found:.6f} for states that are {what}, it is {truth:.6f}")
    return "as the study of drift has it, five pairs"


@exercise("11", "old_rows_and_weight(new, share) -> how many old rows, and what their mean loss is multiplied by")
def old_rows_and_weight(answer: Callable) -> str:
    for new, share in ((32, 0.2), (16, 0.5), (12, 0.25)):
        rows, weight = answer(new, share)
        truth = new * share / (1 - share)
        demand(math.isclose(rows, truth), f"{rows} old rows beside {new} with a share of {share}, it is {truth:g}")
        demand(math.isclose(weight, share / (1 - share)), f"their mean loss is multiplied by {weight:g}; the task's mean is over {new} rows and theirs over {truth:g}: "
                                                          f"it is {share / (1 - share):g}")
    return "three shares"
