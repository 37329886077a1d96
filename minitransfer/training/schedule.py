"""How far a run is, when it ends, and the learning rate at each step. Pure functions."""
from __future__ import annotations

import math
from dataclasses import dataclass

from .settings import TrainSettings

SLANTED_RATIO = 32  # how many times smaller the first and last rate of the slanted triangle are than its peak
ROUNDING = 1e-6     # of a step: 0.07 * 100 is 7.000000000000001, and no eighth step is meant


@dataclass(frozen=True)
class Horizon:
    """Where a run ends: whichever of its limits comes first. Limits that were not given are infinite."""

    steps: float
    tokens: float
    seconds: float
    steps_by: str = "steps"             # "steps" | "epochs": which of the two gave the number of steps

    @classmethod
    def of(cls, settings: TrainSettings, batches_per_epoch: int) -> Horizon:
        steps, epochs, tokens, minutes = (math.inf if limit is None else float(limit)
                                          for limit in (settings.steps, settings.epochs, settings.tokens, settings.minutes))
        by_epochs = epochs if math.isinf(epochs) else float(max(1, math.ceil(epochs * batches_per_epoch / settings.micro_batches)))
        return cls(min(steps, by_epochs), tokens, 60 * minutes, "steps" if steps <= by_epochs else "epochs")

    def total_steps(self, step: int, tokens: int, seconds: float) -> float:
        """How many steps the whole run is going to have, as far as one can tell after `step` of them.

        The number is exact where steps or epochs are the limit. Tokens and minutes are extrapolated from what the steps so far have used, anew before
        each step, so the schedule lands where the limit is. Before the first step nothing is known of those two, and they count as far away.
        """
        if step == 0:
            return self.steps
        return min(self.steps, step * self.tokens / max(tokens, 1), step * self.seconds / max(seconds, 1e-9))

    def reached(self, step: int, tokens: int, seconds: float) -> str | None:
        """The name of the limit that is used up, if one is."""
        used = {self.steps_by: step >= self.steps, "tokens": tokens >= self.tokens, "minutes": seconds >= self.seconds}
        return next((name for name, done in used.items() if done), None)


def warmup_steps(total: float, settings: TrainSettings) -> float:
    """`warmup` in steps."""
    if settings.warmup >= 1 or settings.warmup == 0:
        return float(settings.warmup)
    return math.inf if math.isinf(total) else float(math.ceil(settings.warmup * total - ROUNDING))


def lr_at(step: int, total: float, settings: TrainSettings) -> float:
    """The learning rate of step `step` (from 0) in a run of `total` steps, with W warm-up steps and m = min_lr.

    1. warm-up, step < W:  lr (step + 1) / W
    2. after it, with r = (total - step) / (total - W), which falls from 1 to 0:
       constant  lr
       linear    lr (m + (1 - m) r)
       cosine    lr (m + (1 - m) (1 - cos(pi r)) / 2)
    slanted is a triangle from the first step to the last, see `slanted`.

    `total` is infinite before the first step of a run that only tokens or minutes limit; if its warm-up is a fraction, that one step is at rate 0.
    Deviation from the usual linear warm-up: it starts at lr / W and not at 0, because a step at rate 0 costs as much as any other and learns nothing.
    """
    lr = float(settings.lr)
    if settings.schedule == "slanted":
        return lr * slanted(step, total, settings)
    if step < (warm := warmup_steps(total, settings)):
        return lr * (step + 1) / warm
    if settings.schedule == "constant" or math.isinf(total):
        return lr
    r = max(0.0, min(1.0, (total - step) / max(total - warm, 1)))
    fall = r if settings.schedule == "linear" else (1 - math.cos(math.pi * r)) / 2
    return lr * (settings.min_lr + (1 - settings.min_lr) * fall)


def slanted(step: int, total: float, settings: TrainSettings) -> float:
    """The slanted triangle as a fraction of the peak rate: a short climb to the step `cut`, a long descent after it.

    cut = floor(total cut_frac);  p = step / cut before it, 1 - (step - cut) / (cut (1 / cut_frac - 1)) after it;  (1 + p (ratio - 1)) / ratio

    Here cut_frac is `warmup` (as a fraction of the run) and ratio is 1 / min_lr, or 32 if min_lr is 0.
    Source: Howard & Ruder 2018, equation 3. Deviation: p stays at 0 where their rounding of `cut` would make the last rates negative.
    """
    ratio = 1 / settings.min_lr if settings.min_lr else SLANTED_RATIO
    if step == 0 or math.isinf(total):
        return 1 / ratio
    cut_frac = settings.warmup if settings.warmup < 1 else min(1.0, settings.warmup / total)
    cut = math.floor(total * cut_frac + ROUNDING)
    p = step / cut if step < cut else 1 - (step - cut) / max(cut * (1 / cut_frac - 1), 1) if cut_frac else 1 - step / total
    return (1 + max(0.0, p) * (ratio - 1)) / ratio
