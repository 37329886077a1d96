"""ULMFiT: a rate for each depth, a slanted triangle over time, and groups that thaw one by one from the top."""
from __future__ import annotations

from dataclasses import replace

from ...nn.model import Model
from ..base import Strategy
from .discriminative import discriminative, rungs

Number = int | float
ROUNDING = 1e-9     # of an epoch: 7 / (7 / 3) is not always 3


def thawed(model: Model, epochs: float, per_epoch: Number = 1) -> list[str]:
    """What trains after so many epochs: the head's rung at the start, and `per_epoch` more rungs with each epoch, from the top."""
    ladder = rungs(model)
    n = 1 + int(epochs * per_epoch + ROUNDING)
    return [name for rung in list(ladder)[-n:] for name in ladder[rung]]


def ulmfit(lm_epochs: Number = 0, decay: Number = 2.6, cut_frac: Number = 0.1, ratio: Number = 32, per_epoch: Number = 1) -> Strategy:
    """LM tuning on the task's text, then discriminative rates, a slanted triangular schedule and gradual unfreezing; what joins starts with fresh moments.

    Args:   lm_epochs: passes over the texts of the training rows, without their labels, on which the language model is tuned first ("ulmfit:1": one). It needs
            the head the model was pretrained with; 0: the model has been tuned before, or has no such head.
            decay: see `discriminative`.
            cut_frac: the share of the run in which the rate climbs; ratio: of the highest rate to the lowest.
            per_epoch: rungs that join with every epoch. With one, a model of L blocks is trained as a whole after L + 1 epochs; a shorter run
            leaves its lowest rungs as they were, which `plan(model, "ulmfit", steps, epochs)` shows.
    Source: Howard & Ruder 2018, sections 3.1 to 3.3, equation 3. Where there is more text than the training rows have, its language is tuned by hand:

                mt.adapt(model, tok, texts)                                                     # the model keeps its vocabulary head
                mt.finetune(model, tok, train=rows, strategy="ulmfit", epochs=8)                # the head is replaced, the body is the tuned one

    Deviations: Adam in the place of SGD, one rate for all depths in LM tuning, one triangle over the whole run, no backpropagation through long documents.
    Raises: ValueError for lm_epochs below zero, and for settings that make no triangle.
    """
    if not lm_epochs >= 0:
        raise ValueError(f"lm_epochs={lm_epochs}; passes over the texts are zero or more: give 0 to leave LM tuning out")
    if not per_epoch > 0:
        raise ValueError(f"per_epoch={per_epoch}; so many layer groups join with every epoch: give a number above zero")
    if not (0 < cut_frac < 1 and ratio > 1):
        raise ValueError(f"cut_frac={cut_frac}, ratio={ratio}; the triangle climbs for a part of the run to a peak above its foot: "
                         "give a fraction between 0 and 1, and a ratio above 1")
    return replace(discriminative(decay), name="ulmfit", lm_epochs=lm_epochs, now=lambda model, epochs: thawed(model, epochs, per_epoch),
                   settings={"lr": 1e-3, "schedule": "slanted", "warmup": cut_frac, "min_lr": 1 / ratio})
