"""09, from a new head to the whole model."""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..nn.model import Model
from ..training import TrainSettings
from ..training.schedule import slanted as engine_slanted
from ..transfer import freeze, layer_groups, plan
from ..transfer.strategies import strategy
from ..transfer.strategies.discriminative import rungs
from ..transfer.strategies.ulmfit import thawed as engine_thawed
from .exercise import demand, exercise, in_engine


def classifier() -> Model:
    return Model.from_pretrained("mini-bert", head="sequence", labels=["a", "b"])


@exercise("09", "rates(groups, lr, decay) -> {name: rate}, the highest group lr, each one below it decay times less")
def rates(answer: Callable) -> str:
    found = answer(["a", "b", "c"], 8.0, 2)
    demand(dict(found) == {"a": 2.0, "b": 4.0, "c": 8.0}, f"{found} for three groups, lr=8, decay=2; the highest is the last")
    model = classifier()
    ladder = rungs(model)
    own = answer(list(ladder), 1e-3, 2.6)
    of_name = {name: rung for rung, names in ladder.items() for name in names}
    made = replace(strategy("discriminative"), rate=lambda m: lambda name: own[of_name[name]] / 1e-3)
    truth, found = (plan(model, one, steps=7, lr=1e-3) for one in ("discriminative", made))
    demand([row.group for row in truth.rows] == [row.group for row in found.rows] and np.allclose(truth.rates, found.rates, rtol=1e-9, equal_nan=True),
           f"a run would have these rates:\n{found}\nand it has\n{truth}")
    return f"as the plan of a discriminative run has them, {len(truth.rows)} groups"


@exercise("09", "slanted(t, T, lr, cut_frac, ratio) -> the rate of ULMFiT's triangle at step t of T")
def slanted(answer: Callable) -> str:
    for T, cut_frac, ratio in ((100, 0.1, 32), (37, 0.25, 8), (10, 0.5, 2)):
        settings = TrainSettings(steps=T, lr=0.01, schedule="slanted", warmup=cut_frac, min_lr=1 / ratio)
        for t in range(T):
            found, truth = float(answer(t, T, 0.01, cut_frac, ratio)), 0.01 * engine_slanted(t, float(T), settings)
            demand(math.isclose(found, truth, rel_tol=1e-9), f"{found:.6g} at step {t} of {T}, cut_frac={cut_frac}, ratio={ratio}; it is {truth:.6g}")
    planned = plan(classifier(), "ulmfit", steps=30, epochs=9)
    with in_engine("training.schedule:slanted", lambda step, total, settings: answer(step, int(total), 1.0, settings.warmup, 1 / settings.min_lr)):
        with_answer = plan(classifier(), "ulmfit", steps=30, epochs=9)
    demand(np.allclose(planned.rates, with_answer.rates, rtol=1e-9, equal_nan=True), "in the engine a run has other rates")
    return "three triangles, and every rate of a run in the engine"


@exercise("09", "thawed(groups, epoch) -> the groups that train in this epoch, from the bottom to the top")
def thawed(answer: Callable) -> str:
    model = classifier()
    ladder = list(rungs(model))
    for epoch in range(len(ladder) + 2):
        names = engine_thawed(model, float(epoch))
        truth = [rung for rung in ladder if set(rungs(model)[rung]) & set(names)]
        found = list(answer(list(ladder), epoch))
        demand(found == truth, f"{found} in epoch {epoch} of {ladder}; it is {truth}")
    return f"as ulmfit thaws {len(ladder)} groups of mini-bert"


@exercise("09", "freeze_below(model, n): the n highest blocks and what stands above them learn, nothing else")
def freeze_below(answer: Callable) -> str:
    for n in (0, 2, 4):
        ours, theirs = classifier(), classifier()
        answer(theirs, n)
        freeze(ours, f"embed, blocks.0-{len(ours.blocks) - n - 1}" if n < len(ours.blocks) else "embed")
        odd = [name for name, p in theirs.named_parameters() if p.requires_grad != ours.get_parameter(name).requires_grad]
        demand(not odd, f"with n={n} {odd[0] if odd else ''} {'learns' if odd and theirs.get_parameter(odd[0]).requires_grad else 'is frozen'}, and should not")
    return f"as freeze does it, {len(layer_groups(classifier()))} groups, three times"
