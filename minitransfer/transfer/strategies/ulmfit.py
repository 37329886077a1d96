"""ULMFiT: a rate for each depth, a slanted triangle over time, and groups that thaw one by one from the top."""
from __future__ import annotations

from dataclasses import replace

from ...nn.model import Model
from ..base import Strategy
from .discriminative import PEAK, discriminative, rungs

Number = int | float
ROUNDING = 1e-9     # of an epoch: 7 / (7 / 3) is not always 3


def thawed(model: Model, epochs: float, per_epoch: Number = 1) -> list[str]:
    """What trains after so many epochs: the head's rung at the start, and `per_epoch` more rungs with each epoch, from the top."""
    ladder = rungs(model)
    n = 1 + int(epochs * per_epoch + ROUNDING)
    return [name for rung in list(ladder)[-n:] for name in ladder[rung]]


def ulmfit(decay: Number = 2.6, cut_frac: Number = 0.1, ratio: Number = 32, per_epoch: Number = 1) -> Strategy:
    """Discriminative rates, a slanted triangular schedule and gradual unfreezing; what joins starts with fresh moments.

    Args:   decay: see `discriminative`.
            cut_frac: the share of the run in which the rate climbs; ratio: of the highest rate to the lowest.
            per_epoch: rungs that join with every epoch. With one, a model of L blocks is trained as a whole after L + 1 epochs; a shorter run
            leaves its lowest rungs as they were, which `plan(model, "ulmfit", steps, epochs)` shows.
    Source: Howard & Ruder 2018, sections 3.2 and 3.3, equation 3. Their second stage, tuning the language model on the task's own text, is a run
            of its own before this one, because it needs no labels and another head:

                mt.adapt(model, tok, texts)                                                     # the model keeps its vocabulary head
                mt.finetune(model, tok, train=rows, strategy="ulmfit", epochs=8)                # the head is replaced, the body is the tuned one

    Deviations: Adam in the place of SGD, one triangle over the whole run, and no backpropagation through long documents.
    """
    if not per_epoch > 0:
        raise ValueError(f"per_epoch={per_epoch}; so many layer groups join with every epoch: give a number above zero")
    if not (0 < cut_frac < 1 and ratio > 1):
        raise ValueError(f"cut_frac={cut_frac}, ratio={ratio}; the triangle climbs for a part of the run to a peak above its foot: "
                         "give a fraction between 0 and 1, and a ratio above 1")
    return replace(discriminative(decay), name="ulmfit", now=lambda model, epochs: thawed(model, epochs, per_epoch),
                   settings={"lr": PEAK, "schedule": "slanted", "warmup": cut_frac, "min_lr": 1 / ratio})
